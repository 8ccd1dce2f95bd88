"""`VisionLanguageModel`: texts with images in each form, compared with the processor and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from nnsight_dsl import TransformersModel, VisionLanguageModel, compat
from tests.architectures import IMAGE, IMAGE_END, IMAGE_START, new_llava
from tests.models import assert_near, assert_same, tokenizer

TEXT = f"{IMAGE_START} {IMAGE} {IMAGE_END} the cat"
OTHER = f"the red dog {IMAGE_START} {IMAGE} {IMAGE_END} ran over a mat"
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{{ '" + IMAGE + " ' if part.type == 'image' else part.text + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}one{% endif %}"
)
GREEDY = {"max_new_tokens": 3, "do_sample": False}


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("llava"))
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer().backend_tokenizer).from_str(
            tokenizer().backend_tokenizer.to_str()
        ),
        pad_token="[PAD]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        additional_special_tokens=[IMAGE],
        model_input_names=["input_ids", "attention_mask"],
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
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    new_llava().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(path: str) -> VisionLanguageModel:
    return VisionLanguageModel(path)


def expected(model: VisionLanguageModel, text: str, seed: int) -> Any:
    given = model.processor(text=[text], images=[image(seed)], return_tensors="pt")
    with torch.no_grad():
        return model.module(**given).logits


def test_the_parts_are_those_of_the_processor(model: VisionLanguageModel) -> None:
    assert isinstance(model.processor, transformers.LlavaProcessor)
    assert model.tokenizer is model.processor.tokenizer
    assert model.image_processor is model.processor.image_processor
    assert model.feature_extractor is None
    assert model.task == "image-text-to-text"


def test_each_form_of_a_text_with_an_image(model: VisionLanguageModel) -> None:
    model.dispatch()
    given = model.processor(text=[TEXT], images=[image(1)], return_tensors="pt")
    forms: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((TEXT,), {"images": [image(1)]}),
        ((), {"text": TEXT, "images": [image(1)]}),
        (({"text": TEXT, "images": image(1)},), {}),
        ((given,), {}),
        ((), dict(given)),
    ]
    for args, kwargs in forms:
        with model.trace(*args, **kwargs):
            logits = model.lm_head.output.save()
        assert_same(logits.detach(), expected(model, TEXT, 1))


def test_invokes_bring_an_image_each(model: VisionLanguageModel) -> None:
    model.dispatch()
    with model.trace() as tracer:
        with tracer.invoke(TEXT, images=[image(1)]):
            one = model.lm_head.output.save()
        with tracer.invoke({"text": OTHER, "images": image(2)}):
            other = model.lm_head.output.save()
    for value, text, seed in ((one, TEXT, 1), (other, OTHER, 2)):
        right = expected(model, text, seed)
        assert_near(value[:, -right.shape[1] :].detach(), right)


def test_a_chat_with_an_image_in_it(model: VisionLanguageModel) -> None:
    model.dispatch()
    content = [{"type": "image", "image": image(1)}, {"type": "text", "text": "the cat"}]
    with model.trace([{"role": "user", "content": content}]):
        logits = model.lm_head.output.save()
    assert_near(logits.detach(), expected(model, f"{IMAGE} the cat one", 1))


def test_a_generation(model: VisionLanguageModel) -> None:
    model.dispatch()
    given = model.processor(text=[TEXT], images=[image(1)], return_tensors="pt")
    right = model.module.generate(**given, **GREEDY)
    with model.generate(TEXT, images=[image(1)], **GREEDY) as tracer:
        found = tracer.result.save()
    assert_same(found, right)
    with model.generate(text=TEXT, images=[image(1)], generate_kwargs=GREEDY) as tracer:
        found = tracer.result.save()
    assert_same(found, right)


def test_the_records_are_those_of_the_plain_pipeline(model: VisionLanguageModel, path: str) -> None:
    plain = transformers.pipeline("image-text-to-text", path, device="cpu")
    right = plain(image(1), text=TEXT, generate_kwargs=GREEDY)
    assert model.pipe(image(1), text=TEXT, generate_kwargs=dict(GREEDY)) == right
    with model.pipe(images=image(1), text=TEXT, generate_kwargs=dict(GREEDY)) as tracer:
        model.model.language_model.layers[1].output[:] = 0
        records = tracer.result.save()
    assert records[0].keys() == right[0].keys()


@pytest.mark.parametrize("version", ["0.8", "0.6"])
def test_programs_for_nnsight_name_it(path: str, version: str) -> None:
    compat.install(version)
    try:
        import nnsight
        from nnsight.modeling.vlm import VisionLanguageModel as named

        if version == "0.8":
            with pytest.warns(nnsight.NNsightDeprecationWarning, match="image-text-to-text"):
                found = named(path, dispatch=True)
        else:
            found = named(path, dispatch=True)
        assert nnsight.VisionLanguageModel is named
        assert isinstance(found, VisionLanguageModel)
        with found.trace(TEXT, images=[image(1)]):
            logits = found.lm_head.output.save()
        assert_same(logits.detach(), expected(found, TEXT, 1))
        if version == "0.8":
            same = nnsight.TransformersModel(path, task="image-text-to-text", dispatch=True)
            assert isinstance(same, TransformersModel)
            with same.trace(TEXT, images=[image(1)]):
                logits = same.lm_head.output.save()
            assert_same(logits.detach(), expected(found, TEXT, 1))
    finally:
        compat.uninstall()
