"""Keywords and attributes of `TransformersModel`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from nnsight_dsl import InputError, LanguageModel, TransformersModel
from tests.models import assert_same
from tests.surface08.checkpoints import save


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save("text-generation", tmp_path_factory.mktemp("gpt2"))


def test_attributes(path: str) -> None:
    model = LanguageModel(path, attn_implementation="eager", revision="main")
    assert (model.task, model.repo_id, model.revision) == ("text-generation", path, "main")
    assert model.attn_implementation == "eager"
    assert model.processor is model.image_processor is model.feature_extractor is None
    assert not model.dispatched
    assert isinstance(model.pipeline, transformers.TextGenerationPipeline)
    model.dispatch()
    assert model.dispatched
    assert model.pipeline.model is model.module
    assert model.pipeline.tokenizer is model.tokenizer
    with model.edit() as edited:
        model.lm_head.output[:] = 0
    assert edited.dispatched
    assert LanguageModel(model.module).repo_id is None


@pytest.mark.parametrize("given", [{"dtype": "float64"}, {"torch_dtype": torch.float64}])
def test_precision_by_name(path: str, given: dict[str, object]) -> None:
    model = TransformersModel(path, task="text-generation", device="cpu", **given)
    assert model.lm_head.weight.dtype == torch.float64
    with model.trace("the cat"):
        logits = model.lm_head.output.save()
    assert logits.dtype == torch.float64


def test_a_device_beats_the_map_of_one_device(path: str) -> None:
    model = TransformersModel(path, device="cpu", device_map="cuda", dispatch=True)
    assert model.device == torch.device("cpu")
    with pytest.raises(InputError, match="give one of the two"):
        TransformersModel(path, device="cpu", device_map={"a": 0, "b": 1})


@pytest.mark.parametrize("name", ["nf4", "int4", "4bit", "fp4", "int8", "8bit"])
def test_names_of_quantised_weights_are_known(path: str, name: str) -> None:
    model = TransformersModel(path, dtype=name)
    assert not model.dispatched and model.lm_head.weight.is_meta


def test_weights_that_the_machine_cannot_run_are_refused(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # programs for nnsight expect a ValueError
    with pytest.raises(ValueError, match="capability"):
        TransformersModel(path, dtype="fp8")
    with pytest.raises(InputError, match="give one of the two"):
        TransformersModel(path, dtype="int8", quantization_config=object())


def test_another_name_of_a_precision_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="float16"):
        TransformersModel(path, dtype="half-precision")


def test_a_config_replaces_that_of_the_checkpoint(path: str) -> None:
    config = transformers.AutoConfig.from_pretrained(path, n_layer=1)
    model = TransformersModel(path, config=config)
    assert len(model.transformer.h) == 1
    model.dispatch()
    assert len(model.transformer.h) == 1


def test_a_model_without_a_task_has_no_pipeline() -> None:
    model = TransformersModel(torch.nn.Linear(2, 2))
    assert model.task is None
    with pytest.raises(InputError, match="no task"):
        model.pipe("the cat")


def test_a_part_that_is_missing_is_named(path: str) -> None:
    module = transformers.GPT2LMHeadModel.from_pretrained(path)
    model = TransformersModel(module)
    with pytest.raises(InputError, match="tokenizer"):
        model.pipe("the cat")


def test_a_checkpoint_that_says_no_task(path: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(path)
    config.architectures = None
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="give task="):
        TransformersModel(str(tmp_path))


def test_a_chat_is_one_prompt(path: str) -> None:
    model = LanguageModel(path)
    model.tokenizer.chat_template = (
        "{% for one in messages %}{{ one.content }} {% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    chat = [{"role": "user", "content": "the cat"}]
    with model.trace("the cat a"):
        expected = model.lm_head.output.save()
    with model.trace(chat):
        found = model.lm_head.output.save()
    assert_same(found, expected)
    with model.trace([chat, chat]):
        found = model.lm_head.output.save()
    assert found.shape[0] == 2
    options = {"max_new_tokens": 2, "do_sample": False}
    record = model.pipe(chat, **options)[0]["generated_text"]
    assert [one["role"] for one in record] == ["user", "assistant"]
