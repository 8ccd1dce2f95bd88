"""Models with quantised weights, compared with hooks on the same model as transformers loads it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from nnsight_dsl import InputError, LanguageModel
from tests import models
from tests.models import assert_same, encoded, hooked, recorded

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")

PATHS = ["model.layers.0.mlp.up_proj", "model.layers.1", "lm_head"]
PROMPT = "the cat sat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("plain")
    config = transformers.LlamaConfig(
        vocab_size=len(models.WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    models.tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "Linear4bit"),
        ("int4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "Linear4bit"),
        ("fp4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "Linear4bit"),
        ("8bit", {"load_in_8bit": True}, "Linear8bitLt"),
    ],
)
def test_values_and_edits_are_those_of_the_quantised_model(
    folder: str, name: str, options: Any, kind: str
) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=transformers.BitsAndBytesConfig(**options)
    )
    with recorded(module, PATHS) as seen:
        module(**encoded(PROMPT))
    with hooked(module, {PATHS[0]: lambda output: output * 3}):
        expected = module(**encoded(PROMPT)).logits
    model = LanguageModel(folder, dtype=name)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta

    with model.trace(PROMPT):
        up = model.model.layers[0].mlp.up_proj.output.save()
        hidden = model.model.layers[1].output.save()
        logits = model.lm_head.output.save()
    with model.trace(PROMPT):
        model.model.layers[0].mlp.up_proj.output = model.model.layers[0].mlp.up_proj.output * 3
        changed = model.output.logits.save()

    assert type(model.model.layers[0].mlp.up_proj.module).__name__ == kind
    assert_same([up, hidden, logits], [seen[path][0] for path in PATHS])
    assert_same(changed, expected)
    assert not torch.equal(logits, LanguageModel(folder).trace(PROMPT, trace=False).logits)


def test_a_gradient_through_quantised_weights(folder: str) -> None:
    model = LanguageModel(folder, dtype="nf4", compute_dtype="float32", dispatch=True)
    module = model.module
    hidden: list[Any] = []

    def keep(_: Any, args: Any, output: Any) -> None:
        output.requires_grad_(True)
        output.retain_grad()
        hidden.append(output)

    handle = module.model.layers[0].mlp.up_proj.register_forward_hook(keep)
    module(**encoded(PROMPT)).logits.sum().backward()
    handle.remove()

    with model.trace(PROMPT):
        up = model.model.layers[0].mlp.up_proj.output.save()
        up.requires_grad_(True)
        with model.output.logits.sum().backward():
            gradient = up.grad.save()

    assert_same(gradient, hidden[0].grad)
    config = model.config.quantization_config
    assert config.bnb_4bit_compute_dtype == torch.float32


def test_what_the_machine_cannot_run_is_refused_when_the_wrapper_is_made(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"capability 8\.9 or later, and this machine has none"):
        LanguageModel(folder, dtype="fp8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed"):
        LanguageModel(folder, dtype="nf4")


def test_options_that_contradict_each_other_are_refused(folder: str) -> None:
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(InputError, match="give one of the two"):
        LanguageModel(folder, dtype="nf4", quantization_config=config)
    with pytest.raises(InputError, match="only weights of 4 bits"):
        LanguageModel(folder, dtype="int8", compute_dtype="float16")
    with pytest.raises(InputError, match="says how quantised weights are multiplied"):
        LanguageModel(folder, dtype="float16", compute_dtype="float16")
    with pytest.raises(InputError, match="give its name or path"):
        LanguageModel(models.new_gpt2(), dtype="nf4")
