"""Each task of transformers' pipelines, compared with hooks on the pipeline's own model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from nnsight_dsl import BatchingError, InputError, LanguageModel, TransformersModel
from tests.models import assert_near, assert_same, hooked, new_bert, recorded
from tests.surface08.checkpoints import CHECKPOINTS, save, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    saved: dict[str, str] = {}

    def of(task: str) -> str:
        if task not in saved:
            saved[task] = save(task, tmp_path_factory.mktemp(task))
        return saved[task]

    return of


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(seed: int, length: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


@dataclass(frozen=True)
class Case:
    task: str
    layer: str
    inputs: tuple[Any, Any]


CASES = [
    Case("text-generation", "transformer.h.1", ("the cat", "a red dog ran")),
    Case("fill-mask", "bert.encoder.layer.1", ("the [MASK] sat", "a red [MASK] ran under")),
    Case("text-classification", "bert.encoder.layer.1", ("the cat sat", "a red dog ran under")),
    Case("token-classification", "bert.encoder.layer.1", ("the cat", "a red dog ran")),
    Case("feature-extraction", "encoder.layer.1", ("the cat", "a red dog ran")),
    Case("image-classification", "vit.layers.1", (image(1), image(2))),
    Case("image-feature-extraction", "layers.1", (image(1), image(2))),
    Case("object-detection", "vit.encoder.layer.1", (image(1), image(2))),
    Case("depth-estimation", "glpn.encoder.block.1.0", (image(1), image(2))),
    Case("audio-classification", "wav2vec2.encoder.layers.1", (sound(1), sound(2))),
    Case("automatic-speech-recognition", "wav2vec2.encoder.layers.1", (sound(1), sound(2))),
]
by_task = pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
UNMOVED = ("automatic-speech-recognition", "object-detection", "text-generation")
"""Tasks whose records may stay the same when a layer is edited: they leave most of a value out."""
IMAGE, SOUND = CASES[5], CASES[9]


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def text_of(records: Any) -> str:
    """Records as a text; images of depth have no values in theirs."""
    if isinstance(records, (list, tuple)):
        return f"[{', '.join(map(text_of, records))}]"
    if isinstance(records, dict):
        return str({key: text_of(value) for key, value in records.items()})
    return str(records.tobytes() if isinstance(records, Image.Image) else records)


def plain(case: Case, folder: Callable[[str], str]) -> Any:
    return transformers.pipeline(case.task, folder(case.task), device="cpu")


def options(case: Case) -> dict[str, Any]:
    return {"max_new_tokens": 3, "do_sample": False} if case.task == "text-generation" else {}


def layer_of(pipe: Any, case: Case, one: Any) -> torch.Tensor:
    """What a layer returns first when the pipeline runs on an input alone."""
    with recorded(pipe.model, [case.layer]) as seen:
        pipe(one, **options(case))
    return first(seen[case.layer][0])


def test_every_checkpoint_has_a_case() -> None:
    assert {case.task for case in CASES} == set(CHECKPOINTS)


@by_task
def test_the_class_and_the_parts_are_those_of_the_pipeline(
    case: Case, folder: Callable[[str], str]
) -> None:
    expected = plain(case, folder)
    for given in ({"task": case.task}, {}):
        model = TransformersModel(folder(case.task), **given)
        assert not model.dispatched
        assert model.task == case.task
        assert type(model.module) is type(expected.model)
        for name in ("tokenizer", "processor", "image_processor", "feature_extractor"):
            assert type(getattr(model, name)) is type(getattr(expected, name))


@by_task
def test_reads_are_those_of_the_pipelines_forward(case: Case, folder: Callable[[str], str]) -> None:
    pipe = plain(case, folder)
    model = TransformersModel(folder(case.task), task=case.task)
    layer = model.get(case.layer)
    with model.trace(case.inputs[0]):
        value = layer.output.save()
    assert_same(first(value), layer_of(pipe, case, case.inputs[0]))
    assert model.dispatched


@by_task
def test_invokes_are_one_batch(case: Case, folder: Callable[[str], str]) -> None:
    pipe = plain(case, folder)
    model = TransformersModel(folder(case.task), task=case.task)
    layer = model.get(case.layer)
    one, other = case.inputs
    with model.trace() as tracer:
        with tracer.invoke(one):
            left = layer.output.save()
        with tracer.invoke(other):
            right = layer.output.save()
        with tracer.invoke():
            both = layer.output.save()
    assert len(first(both)) == 2
    for value, given in ((left, one), (right, other)):
        expected = layer_of(pipe, case, given)
        found = first(value)
        if model._architecture.pads_left:
            assert_near(found[:, -expected.shape[1] :], expected)
        else:
            assert_near(found[:, : expected.shape[1]], expected)


@by_task
def test_records_are_those_of_the_plain_pipeline(case: Case, folder: Callable[[str], str]) -> None:
    pipe = plain(case, folder)
    model = TransformersModel(folder(case.task), task=case.task)
    for given in (case.inputs[0], list(case.inputs)):
        expected = pipe(given, **options(case))
        found = model.pipe(given, **options(case))
        assert text_of(found) == text_of(expected)
        with model.pipe(given, **options(case)) as tracer:
            records = tracer.result.save()
        assert text_of(records) == text_of(expected)


@by_task
def test_an_edit_in_a_pipeline_reaches_its_records(
    case: Case, folder: Callable[[str], str]
) -> None:
    pipe = plain(case, folder)
    model = TransformersModel(folder(case.task), task=case.task)
    layer = model.get(case.layer)

    def change(output: Any) -> None:
        if change.pending:
            first(output)[:] = first(output).flip(-1)
        change.pending = False

    change.pending = True
    with hooked(pipe.model, {case.layer: change}):
        expected = pipe(case.inputs[0], **options(case))
    with model.pipe(case.inputs[0], **options(case)) as tracer:
        value = layer.output
        hidden = value[0] if isinstance(value, tuple) else value
        hidden[:] = hidden.flip(-1)
        records = tracer.result.save()
    assert text_of(records) == text_of(expected)
    if case.task not in UNMOVED:
        assert text_of(records) != text_of(model.pipe(case.inputs[0], **options(case)))


@by_task
def test_a_scan_loads_nothing(case: Case, folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder(case.task), task=case.task)
    layer = model.get(case.layer)
    with model.scan(case.inputs[0]):
        value = layer.output
        width = (value[0] if isinstance(value, tuple) else value).shape[-1]
    assert width == 16 or case.task == "depth-estimation"
    assert not model.dispatched


def test_steps_of_a_generating_pipeline(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder("text-generation"), task="text-generation")
    with model.pipe("the cat", max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        seen = [].save()
        for _step in tracer.iter[:]:
            seen.append(model.lm_head.output[:, -1].argmax(-1))
        records = tracer.result.save()
    expected = model.generate(
        "the cat", trace=False, max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    assert torch.equal(torch.cat(seen), expected[0, -3:])
    assert records == plain(CASES[0], folder)(
        "the cat", max_new_tokens=3, min_new_tokens=3, do_sample=False
    )


def test_calls_of_a_pipeline_on_a_list_are_visits(folder: Callable[[str], str]) -> None:
    case = CASES[2]
    pipe = plain(case, folder)
    model = TransformersModel(folder(case.task), task=case.task)
    layer = model.bert.encoder.layer[1]
    with model.pipe(list(case.inputs)):
        one = layer.output.save()
        other = layer.next().output.save()
    for value, given in ((one, case.inputs[0]), (other, case.inputs[1])):
        assert_same(first(value), layer_of(pipe, case, given))


def test_several_invokes_of_a_pipeline_are_refused(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder("fill-mask"), task="fill-mask")
    with pytest.raises(BatchingError, match="batch_size"):
        with model.pipe() as tracer:
            with tracer.invoke("the [MASK]"):
                model.cls.output.save()
            with tracer.invoke("a [MASK]"):
                model.cls.output.save()


def test_edits_of_the_wrapper_hold_in_a_pipeline(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder("fill-mask"), task="fill-mask")
    before = model.pipe("the [MASK] sat")
    with model.edit() as edited:
        model.bert.encoder.layer[1].output[:] = 0
    assert edited.pipe("the [MASK] sat") != before
    assert model.pipe("the [MASK] sat") == before


def test_lists_of_images_are_rows(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder(IMAGE.task), task=IMAGE.task)
    with model.trace(list(IMAGE.inputs)):
        logits = model.output.logits.save()
    for row, one in zip(logits, IMAGE.inputs, strict=True):
        with model.trace(one):
            alone = model.output.logits.save()
        assert_near(row[None], alone)


def test_what_the_processor_returns_is_taken_as_it_is(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder(IMAGE.task), task=IMAGE.task)
    with model.trace(IMAGE.inputs[0]):
        expected = model.output.logits.save()
    encoding = model.image_processor(images=IMAGE.inputs[0], return_tensors="pt")
    with model.trace(encoding):
        found = model.output.logits.save()
    assert_same(found, expected)
    with model.trace(**encoding):
        found = model.output.logits.save()
    assert_same(found, expected)
    with pytest.raises(InputError, match="pixel_values="):
        with model.trace(encoding["pixel_values"]):
            model.output.save()


def test_sounds_of_unequal_length_are_refused(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder(SOUND.task), task=SOUND.task)
    with pytest.raises(BatchingError, match="one by one"):
        with model.trace() as tracer:
            with tracer.invoke(sound(1, 400)):
                model.output.save()
            with tracer.invoke(sound(2, 500)):
                model.output.save()


def test_a_wrong_input_is_refused_at_the_line_of_its_invoke(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder(SOUND.task), task=SOUND.task)
    with pytest.raises(InputError, match="ndarray") as caught:
        with model.trace() as tracer:
            with tracer.invoke(sound(1)):
                model.output.save()
            with tracer.invoke({1, 2}):  # this line
                model.output.save()
    assert "# this line" in str(caught.traceback[-1].statement)


def test_labels_of_images_are_one_for_each(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder(IMAGE.task), task=IMAGE.task)
    losses = []
    for one, label in zip(IMAGE.inputs, (0, 2), strict=True):
        with model.trace(one, labels=torch.tensor([label])):
            loss = model.output.loss.save()
        losses.append(loss)
    with model.trace() as tracer:
        with tracer.invoke(IMAGE.inputs[0], labels=0):
            pass
        with tracer.invoke(IMAGE.inputs[1], labels=torch.tensor([2])):
            pass
        with tracer.invoke():
            both = model.output.loss.save()
    assert_near(both, torch.stack(losses).mean())


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="fill-mask"):
        TransformersModel(new_bert(), task="fill-the-mask")
    with pytest.raises(InputError, match="question-answering"):
        TransformersModel(new_bert(), task="question-answering")


def test_a_checkpoint_that_is_not_for_the_task_is_refused(folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match="no model of type 'bert'"):
        TransformersModel(folder("fill-mask"), task="image-classification")


def test_the_task_of_a_module_is_that_of_its_class() -> None:
    model = TransformersModel(new_bert(), tokenizer=tokenizer())
    assert model.task == "fill-mask"
    assert LanguageModel(new_bert(), tokenizer=tokenizer()).task == "fill-mask"


def test_another_name_of_a_task(folder: Callable[[str], str]) -> None:
    model = TransformersModel(folder("token-classification"), task="ner")
    assert model.task == "token-classification"
