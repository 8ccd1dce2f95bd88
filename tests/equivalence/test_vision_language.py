"""Vision-language models: images go along with the prompts whose placeholders stand for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import DataDependentOutputException

from nnsight_dsl import BatchingError, LanguageModel
from tests import models
from tests.architectures import (
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    new_gemma3_vision,
    new_llava,
    new_qwen2_vl,
)
from tests.models import LONG, WORDS, assert_near, assert_same, encoded, hooked, recorded, token_ids

IMAGE_TEXT = f"{IMAGE_START} {IMAGE} {IMAGE} {IMAGE} {IMAGE} {IMAGE_END}"
FIRST = f"{IMAGE_TEXT} the cat"
SECOND = f"the red dog {IMAGE_TEXT} ran over a mat"
GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@dataclass(frozen=True)
class Vision:
    """One architecture, with the paths that a test needs.

    Attributes:
        name: for the test's name.
        new: makes the module.
        patches: path of what embeds the patches of images.
        block: path of a block of the vision part.
        projector: path of what turns patches into tokens.
    """

    name: str
    new: Callable[[], Any]
    patches: str
    block: str
    projector: str

    def inputs(self, prompt: str, seed: int) -> dict[str, torch.Tensor]:
        """What a processor would make of a prompt and images, one for each placeholder."""
        ids = token_ids(prompt)
        is_image = (ids == WORDS.index(IMAGE)).long()
        count = int(is_image.sum()) // 4
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.name == "qwen2_vl":
            given["mm_token_type_ids"] = is_image
        if self.name == "gemma3":
            given["token_type_ids"] = is_image
        if not count:
            return given
        noise = torch.Generator().manual_seed(seed)
        if self.name == "qwen2_vl":
            given["pixel_values"] = torch.randn(16 * count, 12, generator=noise)
            given["image_grid_thw"] = torch.tensor([[1, 4, 4]] * count)
        else:
            given["pixel_values"] = torch.randn(count, 3, 8, 8, generator=noise)
        return given


KINDS = (
    Vision(
        "llava",
        new_llava,
        "model.vision_tower.embeddings",
        "model.vision_tower.encoder.layers.1",
        "model.multi_modal_projector",
    ),
    Vision(
        "gemma3",
        new_gemma3_vision,
        "model.vision_tower.embeddings",
        "model.vision_tower.encoder.layers.1",
        "model.multi_modal_projector",
    ),
    Vision(
        "qwen2_vl",
        new_qwen2_vl,
        "model.visual.patch_embed",
        "model.visual.blocks.1",
        "model.visual.merger",
    ),
)
LAYER = "model.language_model.layers.0"


@cache
def _bare(kind: Vision) -> Any:
    return kind.new()


@cache
def _wrapped(kind: Vision) -> LanguageModel:
    return LanguageModel(kind.new(), tokenizer=models.tokenizer())


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Vision:
    found: Vision = request.param
    return found


@pytest.fixture
def module(kind: Vision) -> Any:
    return _bare(kind)


@pytest.fixture
def model(kind: Vision) -> LanguageModel:
    return _wrapped(kind)


def test_reads_are_what_hooks_see(kind: Vision, module: Any, model: LanguageModel) -> None:
    paths = [kind.patches, kind.block, kind.projector, LAYER]
    inputs = kind.inputs(FIRST, 1)
    with recorded(module, paths) as seen:
        expected = module(**inputs).logits
    with model.trace(**inputs):
        patches = model.get(kind.patches).output.save()
        block = model.get(kind.block).output.save()
        projected = model.get(kind.projector).output.save()
        hidden = model.get(LAYER).output.save()
        logits = model.output.logits.save()
    assert_same([patches, block, projected, hidden], [seen[path][0] for path in paths])
    assert_same(logits, expected)


def test_a_processors_output_is_given_as_it_is(
    kind: Vision, module: Any, model: LanguageModel
) -> None:
    inputs = kind.inputs(FIRST, 1)
    with model.trace(inputs):
        ids = model.input.save()
        logits = model.output.logits.save()
    assert_same(ids, inputs["input_ids"])
    assert_same(logits, module(**inputs).logits)


def test_an_edit_of_the_vision_part_reaches_the_text(kind: Vision, model: LanguageModel) -> None:
    inputs = kind.inputs(FIRST, 1)
    # a new one, where the hook comes before those by which transformers captures hidden states:
    # LLaVA takes the image from what they have captured
    module = kind.new()
    with hooked(
        module, {kind.block: lambda output: output * 0.5, LAYER: lambda output: output + 1}
    ):
        expected = module(**inputs).logits
    with model.trace(inputs):
        model.get(kind.block).output = model.get(kind.block).output * 0.5
        model.get(LAYER).output[:] += 1
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert not torch.equal(logits, module(**inputs).logits)


def test_a_projector_that_is_skipped_gives_other_images(
    kind: Vision, module: Any, model: LanguageModel
) -> None:
    inputs, others = kind.inputs(FIRST, 1), kind.inputs(FIRST, 2)
    with recorded(module, [kind.projector]) as seen:
        expected = module(**others).logits
    with model.trace(inputs):
        model.get(kind.projector).skip(seen[kind.projector][0])
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_invokes_bring_an_image_each(kind: Vision, module: Any, model: LanguageModel) -> None:
    first, second = kind.inputs(FIRST, 1), kind.inputs(SECOND, 2)
    with hooked(module, {LAYER: lambda output: output * 2}):
        edited = module(**first).logits
    with model.trace() as tracer:
        with tracer.invoke(first):
            model.get(LAYER).output = model.get(LAYER).output * 2
            one = model.output.logits.save()
        with tracer.invoke(**second):
            projected = model.get(kind.projector).output.save()
            other = model.output.logits.save()
    assert_near(one[:, -first["input_ids"].shape[1] :], edited)
    assert_near(other, module(**second).logits)
    with recorded(module, [kind.projector]) as seen:
        module(**second)
    if kind.name == "qwen2_vl":
        # the images are one long row of patches, which everybody sees
        projected = projected[-4:]
    assert_near(projected, seen[kind.projector][0])


def test_a_prompt_without_an_image_stands_beside_one_with(
    kind: Vision, module: Any, model: LanguageModel
) -> None:
    first, text = kind.inputs(FIRST, 1), kind.inputs("a bird flew", 0)
    with model.trace() as tracer:
        with tracer.invoke(text):
            one = model.output.logits.save()
        with tracer.invoke(first):
            other = model.output.logits.save()
    assert_near(one[:, -3:], module(**text).logits)
    assert_near(other, module(**first).logits)


def test_text_alone_is_traced_as_text(kind: Vision, module: Any, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke("a bird flew"):
            one = model.output.logits.save()
        with tracer.invoke(LONG):
            other = model.output.logits.save()
    assert_near(one[:, -3:], module(**encoded("a bird flew")).logits)
    assert_near(other, module(**encoded(LONG)).logits)


def test_images_that_are_no_rows_but_as_many_are_refused(kind: Vision) -> None:
    model = _wrapped(kind)
    two = f"{IMAGE_TEXT} {IMAGE_TEXT} the cat"
    with pytest.raises(BatchingError, match="as many items as the batch has rows"):
        with model.trace() as tracer:
            with tracer.invoke(kind.inputs(two, 1)):
                one = model.output.logits.save()
            with tracer.invoke(kind.inputs("a bird flew", 0)):
                other = model.output.logits.save()


def test_two_images_in_one_of_three_prompts(
    kind: Vision, module: Any, model: LanguageModel
) -> None:
    two = kind.inputs(f"{IMAGE_TEXT} {IMAGE_TEXT} the cat", 1)
    one = kind.inputs(SECOND, 2)
    with model.trace() as tracer:
        with tracer.invoke(two):
            first = model.output.logits.save()
        with tracer.invoke(one):
            second = model.output.logits.save()
    assert_near(first, module(**two).logits)
    assert_near(second[:, -one["input_ids"].shape[1] :], module(**one).logits)


def test_a_generation_sees_the_images_once(kind: Vision, module: Any, model) -> None:
    inputs = kind.inputs(SECOND, 3)
    with recorded(module, [kind.projector, LAYER]) as seen:
        expected = module.generate(**inputs, **GREEDY)
    assert len(seen[kind.projector]) == 1
    with model.generate(inputs, **GREEDY) as tracer:
        projected = model.get(kind.projector).output.save()
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(model.get(LAYER).output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert_same([projected], seen[kind.projector])
    assert_same(list(hidden), seen[LAYER])


def test_unequal_prompts_with_images_generate_what_they_generate_alone(
    kind: Vision, module: Any, model: LanguageModel
) -> None:
    first, second = kind.inputs(FIRST, 1), kind.inputs(SECOND, 2)
    with model.generate(**GREEDY) as tracer:
        with tracer.invoke(first):
            one = tracer.result.save()
        with tracer.invoke(second):
            other = tracer.result.save()
    for tokens, inputs in ((one, first), (other, second)):
        expected = module.generate(**inputs, **GREEDY)
        assert tokens[0, -3:].tolist() == expected[0, -3:].tolist()


def test_a_scan_of_text_knows_the_shapes(kind: Vision, model: LanguageModel) -> None:
    with model.scan("the cat sat"):
        hidden = model.get(LAYER).output.shape
        logits = model.output.logits.shape
    assert hidden == (1, 3, 16)
    assert logits == (1, 3, len(WORDS))


def test_a_scan_of_an_image_says_that_its_placeholders_are_values(
    kind: Vision, model: LanguageModel
) -> None:
    with pytest.raises(DataDependentOutputException) as caught:
        with model.scan(kind.inputs(FIRST, 1)):
            hidden = model.get(LAYER).output.shape
    assert any("a scan has shapes and no values" in note for note in caught.value.__notes__)


def test_a_trace_of_an_image_is_not_held_up_by_validation(
    kind: Vision, module: Any, model: LanguageModel
) -> None:
    inputs = kind.inputs(FIRST, 1)
    with model.trace(inputs, validate=True):
        logits = model.output.logits.save()
    assert_same(logits, module(**inputs).logits)


def test_images_are_given_to_the_trace_and_texts_to_its_invokes() -> None:
    kind = KINDS[0]
    model = _wrapped(kind)
    first, second = kind.inputs(FIRST, 1), kind.inputs(SECOND, 2)
    images = torch.cat([first["pixel_values"], second["pixel_values"]])
    with model.trace(pixel_values=images) as tracer:
        with tracer.invoke(FIRST):
            one = model.lm_head.output[:, -1].save()
        with tracer.invoke(SECOND):
            other = model.lm_head.output[:, -1].save()
    assert_near(one, _bare(kind)(**first).logits[:, -1])
    assert_near(other, _bare(kind)(**second).logits[:, -1])


def test_tokens_beside_an_input_without_any_are_refused() -> None:
    kind = KINDS[0]
    model = _wrapped(kind)
    with pytest.raises(BatchingError, match="one invoke has tokens and another one has none"):
        with model.trace() as tracer:
            with tracer.invoke(**kind.inputs(FIRST, 1)):
                one = model.lm_head.output.save()
            with tracer.invoke(pixel_values=kind.inputs(SECOND, 2)["pixel_values"]):
                other = model.lm_head.output.save()


def test_a_processor_makes_the_arguments_of_texts_and_images() -> None:
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(models.tokenizer().backend_tokenizer).from_str(
            models.tokenizer().backend_tokenizer.to_str()
        ),
        pad_token="[PAD]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        additional_special_tokens=[IMAGE],
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
        ),
        tokenizer=words,
        patch_size=4,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    kind = KINDS[0]
    model = LanguageModel(kind.new(), tokenizer=processor)
    text = f"{IMAGE_START} {IMAGE} {IMAGE_END} the cat"
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    given = processor(text=[text], images=[image], return_tensors="pt")
    with model.trace(text, images=[image]):
        logits = model.lm_head.output.save()
    assert_same(logits, _bare(kind)(**given).logits)
    with model.trace(LONG):
        logits = model.lm_head.output.save()
    assert_near(logits, _bare(kind)(**encoded(LONG)).logits)
