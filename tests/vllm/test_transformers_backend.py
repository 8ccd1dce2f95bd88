"""Architectures that vLLM runs by the code of transformers: there values are [1, all tokens, ...].

vLLM changes the classes of such an architecture, so what transformers computes is recorded before
the engine is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight_dsl import EngineError
from tests.vllm.conftest import FACTS, ended, hf_model, started

PROMPTS = ["Paris is in", "The Colosseum stands in the city of", "Rome"]
LAYER, ADDED = 1, 3.0


def _gpt_neox(n_vocabulary: int) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=n_vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3,
            bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )
    )  # fmt: skip


def _olmo2(n_vocabulary: int) -> Any:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=n_vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
            initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )
    )  # fmt: skip


class Expected:
    """What transformers computes for each prompt alone."""

    def __init__(self, folder: Path) -> None:
        model = hf_model(folder)
        layers = _layers(model)
        self.hidden, self.attention, self.logits, self.steered = [], [], [], []
        for prompt in PROMPTS:
            with model.trace(prompt):
                attention = _attention(layers[LAYER]).output[0].save()
                hidden = layers[LAYER].output.save()
                logits = model.output.logits[:, -1].save()
            with model.trace(prompt):
                layers[LAYER].output[:, -1] += ADDED
                steered = model.output.logits[:, -1].save()
            self.hidden.append(hidden)
            self.attention.append(attention)
            self.logits.append(logits)
            self.steered.append(steered)


def _layers(model: Any) -> Any:
    top = model.gpt_neox if hasattr(model, "gpt_neox") else model.model
    return top.layers


def _attention(layer: Any) -> Any:
    return layer.attention if hasattr(layer, "attention") else layer.self_attn


@pytest.fixture(scope="module", params=[_gpt_neox, _olmo2], ids=["GPT-NeoX", "OLMo 2"])
def served(request: Any, tmp_path_factory: Any) -> Iterator[tuple[Any, Expected]]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(FACTS)
    torch.manual_seed(0)
    request.param(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    expected = Expected(folder)
    model = started(folder, model_impl="transformers")
    yield model, expected
    ended(model)


def test_a_request_is_handed_its_own_tokens(served: tuple[Any, Expected]) -> None:
    model, expected = served
    layer = _layers(model)[LAYER]
    hidden, attention, logits = [], [], []
    with model.trace(temperature=0.0) as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                attention.append(_attention(layer).output)
                hidden.append(layer.output)
                logits.append(model.logits.output)
    for i in range(len(PROMPTS)):
        found = attention[i][0] if isinstance(attention[i], tuple) else attention[i]
        torch.testing.assert_close(found, expected.attention[i], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(hidden[i], expected.hidden[i], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(logits[i], expected.logits[i], rtol=1e-3, atol=1e-3)


def test_a_write_reaches_its_own_tokens_alone(served: tuple[Any, Expected]) -> None:
    model, expected = served
    layer = _layers(model)[LAYER]
    with model.trace(temperature=0.0) as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = model.logits.output.save()
        with tracer.invoke(PROMPTS[1]):
            layer.output[:, -1] += ADDED
            second = model.logits.output.save()
        with tracer.invoke(PROMPTS[2]):
            new = layer.output.clone()
            new[:, -1] += ADDED
            layer.output = new
            third = model.logits.output.save()
    torch.testing.assert_close(first, expected.logits[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second, expected.steered[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(third, expected.steered[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n_prompts", [1, 3])
def test_each_step_of_a_generation_has_one_token(
    served: tuple[Any, Expected], n_prompts: int
) -> None:
    model, _ = served
    layer = _layers(model)[LAYER]
    shapes: list[Any] = []
    with model.generate(max_tokens=3, temperature=0.0) as tracer:
        for prompt in PROMPTS[:n_prompts]:
            with tracer.invoke(prompt):
                for _ in tracer.iter[:]:
                    shapes.append(tuple(layer.output.shape))
    width = 64
    assert len(shapes) == 3 * n_prompts
    assert all(shape[0] == 1 and shape[2:] == (width,) for shape in shapes)
    assert sum(shape[1] == 1 for shape in shapes) >= 2 * n_prompts


@pytest.mark.parametrize("prompt", [PROMPTS[0], [5], [5, 6]])
def test_a_tensor_that_cannot_be_split_is_not_handed_out(
    served: tuple[Any, Expected], prompt: Any
) -> None:
    model, _ = served
    attention = _attention(_layers(model)[LAYER])
    with pytest.raises(EngineError, match="no axis is that of the"), model.trace(prompt):
        # [1, heads, tokens, size]: with two tokens there are as many as heads
        attention.source.attention_interface_0.inputs.save()


def test_its_error_is_that_of_its_request(served: tuple[Any, Expected]) -> None:
    model, expected = served
    attention = _attention(_layers(model)[LAYER])
    with pytest.raises(EngineError, match="no axis is that of the"):
        with model.trace(temperature=0.0) as tracer:
            with tracer.invoke(PROMPTS[0]):
                attention.source.attention_interface_0.inputs.save()
            with tracer.invoke(PROMPTS[1]):
                logits = model.logits.output.save()
    torch.testing.assert_close(logits, expected.logits[1], rtol=1e-3, atol=1e-3)


def test_a_cache_has_each_request_s_tokens(served: tuple[Any, Expected]) -> None:
    model, expected = served
    layer = _layers(model)[LAYER]
    with model.trace(temperature=0.0) as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = tracer.cache(modules=[layer])
        with tracer.invoke(PROMPTS[1]):
            second = tracer.cache(modules=[layer])
    for found, wanted in zip([first, second], expected.hidden[:2], strict=True):
        torch.testing.assert_close(found[layer._path].output, wanted, rtol=1e-3, atol=1e-3)
