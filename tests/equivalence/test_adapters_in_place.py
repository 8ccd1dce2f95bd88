"""Adapters that are put into a model in place, compared with hooks on PEFT's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from nnsight_dsl import InputError, LanguageModel, TransformersModel
from tests import models
from tests.models import assert_same, encoded, hooked, new_gpt2, recorded

PROMPT = "the cat sat"
INSIDE = "base_model.model."
ADAPTED = "transformer.h.1.mlp.c_fc"


def _lora(seed: int, **options: Any) -> Any:
    config = peft.LoraConfig(
        r=2,
        target_modules=["c_attn", "c_fc"],
        fan_in_fan_out=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(new_gpt2(), config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path: Path = tmp_path_factory.mktemp("adapters")
    new_gpt2().save_pretrained(path / "base")
    models.tokenizer().save_pretrained(path / "base")
    for number, name in enumerate(("one", "two")):
        _lora(number).save_pretrained(path / name)
    return {name: str(path / name) for name in ("base", "one", "two")}


def _oracle(folders: dict[str, str], name: str) -> Any:
    return peft.PeftModel.from_pretrained(new_gpt2(), folders[name]).eval()


def _logits(module: Any) -> torch.Tensor:
    logits: torch.Tensor = module(**encoded(PROMPT)).logits
    return logits


@pytest.mark.parametrize("form", ["module", "by name", "dispatched"])
def test_an_adapter_is_part_of_the_base_models_tree(folders: dict[str, str], form: str) -> None:
    module = _oracle(folders, "one")
    parts = ["base_layer", "lora_A.default", "lora_B.default"]
    with recorded(module, [f"{INSIDE}{ADAPTED}.{part}" for part in parts]) as seen:
        expected = _logits(module)
    if form == "module":
        model = TransformersModel(new_gpt2(), tokenizer=models.tokenizer(), peft=folders["one"])
    else:
        model = LanguageModel(folders["base"], peft=folders["one"], dispatch=form == "dispatched")
        assert model.dispatched == (form == "dispatched")
        assert model.transformer.h[1].mlp.c_fc.lora_A.default.weight.is_meta != model.dispatched
    assert "lora_A" in repr(model) and "base_model" not in repr(model)

    with model.trace(PROMPT):
        adapted = model.transformer.h[1].mlp.c_fc
        base = adapted.base_layer.output.save()
        down = adapted.lora_A.default.output.save()
        up = adapted.lora_B["default"].output.save()
        logits = model.output.logits.save()

    assert_same([base, down, up], [seen[f"{INSIDE}{ADAPTED}.{part}"][0] for part in parts])
    assert_same(logits, expected)
    assert not torch.equal(logits, _logits(new_gpt2()))


def test_edits_of_an_adapter_and_a_generation(folders: dict[str, str]) -> None:
    module = _oracle(folders, "one")
    path = f"{ADAPTED}.lora_B.default"
    with hooked(module, {INSIDE + path: lambda output: output * -3}):
        expected = _logits(module)
        tokens = module.generate(**encoded(PROMPT), max_new_tokens=3, do_sample=False)
    model = LanguageModel(folders["base"], peft=folders["one"])

    with model.trace(PROMPT):
        model.transformer.h[1].mlp.c_fc.lora_B.default.output *= -3
        logits = model.output.logits.save()
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[1].mlp.c_fc.lora_B.default.output *= -3
        made = tracer.result.save()

    assert_same(logits, expected)
    assert torch.equal(made, tokens)


def test_an_adapter_is_replaced_and_taken_out(folders: dict[str, str]) -> None:
    model = LanguageModel(folders["base"])
    plain = model.transformer.h[1].mlp.c_fc

    model.load_adapter(folders["one"])
    assert not model.dispatched
    with model.trace(PROMPT):
        first = model.output.logits.save()
    model.load_adapter(folders["two"])
    with model.trace(PROMPT):
        down = model.transformer.h[1].mlp.c_fc.lora_A.default.output.save()
        second = model.output.logits.save()
    model.load_adapter(None)
    with model.trace(PROMPT):
        output = plain.output.save()
        last = model.output.logits.save()

    assert_same(first, _logits(_oracle(folders, "one")))
    assert_same(second, _logits(_oracle(folders, "two")))
    assert_same(last, _logits(new_gpt2()))
    assert down.shape[-1] == 2 and output.shape[-1] == 64
    assert "lora" not in repr(model) and [*model.transformer.h[1].mlp.c_fc.named_children()] == []


def test_several_adapters(folders: dict[str, str]) -> None:
    both = {"one": folders["one"], "two": folders["two"]}
    module = peft.PeftModel.from_pretrained(new_gpt2(), folders["one"], adapter_name="one")
    module.load_adapter(folders["two"], "two")
    model = LanguageModel(folders["base"], peft=both)

    for name in ("two", "one"):
        if name == "one":
            model.set_adapter(name)
        module.set_adapter(name)
        with recorded(module, [f"{INSIDE}{ADAPTED}.lora_A.{name}"]) as seen:
            expected = _logits(module.eval())
        with model.trace(PROMPT):
            down = model.transformer.h[1].mlp.c_fc.lora_A[name].output.save()
            logits = model.output.logits.save()
        assert_same(down, seen[f"{INSIDE}{ADAPTED}.lora_A.{name}"][0])
        assert_same(logits, expected)

    model.load_adapter(None, "two")
    assert list(model.peft_config) == ["one"]


def test_an_edited_copy_loads_it_for_both(folders: dict[str, str]) -> None:
    model = LanguageModel(folders["base"])
    with model.edit() as edited:
        model.transformer.h[0].output[:] *= 1
    edited.load_adapter(folders["one"])
    for one in (model, edited):
        with one.trace(PROMPT):
            logits = one.output.logits.save()
        assert_same(logits, _logits(_oracle(folders, "one")))


def test_a_configuration_makes_new_weights() -> None:
    config = peft.LoraConfig(r=3, target_modules=["c_fc"], fan_in_fan_out=True)
    model = LanguageModel(new_gpt2(), tokenizer=models.tokenizer(), peft=config)
    with model.trace(PROMPT):
        down = model.transformer.h[0].mlp.c_fc.lora_A.default.output.save()
        logits = model.output.logits.save()
    assert down.shape[-1] == 3
    # the second matrix begins with zeros
    assert_same(logits, _logits(new_gpt2()))


def test_adapters_that_cannot_be_put_in_are_refused(
    folders: dict[str, str], tmp_path: Path
) -> None:
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match="learns a prompt"):
        LanguageModel(new_gpt2(), peft=prompts)
    with pytest.raises(InputError, match=r"peft\.PeftModel already"):
        LanguageModel(_lora(0), peft=folders["one"])
    with pytest.raises(InputError, match="int is no adapter"):
        LanguageModel(new_gpt2(), peft=3)
    config = peft.LoraConfig(target_modules=["c_fc"], layers_to_transform=[0], fan_in_fan_out=True)
    small = peft.get_peft_model(new_gpt2(), config)
    small.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace("[\n    0\n  ]", "null"))
    model = LanguageModel(new_gpt2(), tokenizer=models.tokenizer())
    with pytest.raises(InputError, match="does not fit GPT2LMHeadModel"):
        model.load_adapter(str(tmp_path))
    with model.trace(PROMPT):
        logits = model.output.logits.save()
    assert_same(logits, _logits(new_gpt2()))
