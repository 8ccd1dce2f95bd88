"""Every way of decoding, read at each step and edited, beside hooks on transformers' own call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers

from nnsight_dsl import LanguageModel
from tests import models
from tests.models import assert_same, new_gpt2

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
WORDS = len(models.WORDS)
TOKENS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LAYER = "transformer.h.1.mlp"


def _made(model: Any, config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(config).eval()


def new_draft() -> Any:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.4,
        **TOKENS,
    )  # fmt: skip
    return _made(transformers.GPT2LMHeadModel, config)


def new_mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, state_size=4, **TOKENS
    )
    return _made(transformers.MambaForCausalLM, config)


def new_t5() -> Any:
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return _made(transformers.T5ForConditionalGeneration, config)


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Any] = new_gpt2
    path: str = LAYER
    options: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("the cat sat on the cat sat",)


CASES = [
    Case("greedy"),
    Case("beams", options={"num_beams": 3}),
    Case("sequences of beams", options={"num_beams": 3, "num_return_sequences": 2}),
    Case("static cache", options={"cache_implementation": "static"}),
    Case("assisted", options={"assistant_model": new_draft()}),
    Case("prompt lookup", options={"prompt_lookup_num_tokens": 2}),
    Case("state space", new_mamba, "backbone.layers.1.mixer", prompts=("the cat", "a dog")),
    Case("encoder-decoder", new_t5, "decoder.block.1.layer.2", prompts=("the cat", "a dog")),
    Case(
        "encoder-decoder with beams",
        new_t5,
        "decoder.block.1.layer.2",
        {"num_beams": 2},
        ("the cat", "a dog"),
    ),
]


@pytest.mark.filterwarnings("ignore:.*cache:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_step_is_read_and_edited(case: Case) -> None:
    plain = case.make()
    expected: list[Any] = []

    def keep_and_halve(_: Any, args: Any, output: Any) -> Any:
        expected.append(output.clone())
        return output * 0.5

    given = models.tokenizer()([*case.prompts], return_tensors="pt")
    options = {**GREEDY, **case.options}
    untouched = plain.generate(**given, **options)
    handle = plain.get_submodule(case.path).register_forward_hook(keep_and_halve)
    tokens = plain.generate(**given, **options)
    handle.remove()
    model = LanguageModel(case.make(), tokenizer=models.tokenizer())

    with model.generate([*case.prompts], **options) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            layer = model.get(case.path)
            seen.append(layer.output.clone())
            layer.output = layer.output * 0.5
        result = tracer.result.save()
    with model.generate([*case.prompts], **options) as tracer:
        read = tracer.result.save()

    assert len(seen) == len(expected) > 1
    assert_same([*seen], expected)
    assert torch.equal(result, tokens)
    assert torch.equal(read, untouched)


def test_a_wrapper_as_assistant_is_its_model() -> None:
    draft = LanguageModel(new_draft(), tokenizer=models.tokenizer())
    model = LanguageModel(new_gpt2(), tokenizer=models.tokenizer())
    with model.generate("the cat sat", assistant_model=draft, **GREEDY) as tracer:
        tokens = tracer.result.save()
    with model.generate("the cat sat", **GREEDY) as tracer:
        greedy = tracer.result.save()
    assert torch.equal(tokens, greedy)


def test_sequences_of_several_invokes() -> None:
    model = LanguageModel(new_gpt2(), tokenizer=models.tokenizer())
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    alone = [model.generate(prompt, trace=False, **options) for prompt in ("the cat", "a red")]
    with model.generate(**options) as tracer:
        with tracer.invoke("the cat"):
            hidden = model.transformer.h[1].mlp.output.save()
            first = tracer.result.save()
        with tracer.invoke("a red"):
            second = tracer.result.save()
    assert hidden.shape[0] == 3
    assert_same([first, second], alone)
