"""The locations in a layers report are true: read and written apart from it, beside plain hooks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, layers_report
from tests import models
from tests.architectures import DECODERS, built

_OLMO2: dict[str, Any] = {
    "vocab_size": len(models.WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": models.EOS,
    "eos_token_id": models.EOS,
    "pad_token_id": models.PAD,
}
_NEW: dict[str, Callable[[], Any]] = {kind.name: kind.new for kind in DECODERS}

# by architecture: the list of layers, the attention's and the MLP's location below a layer
EXPECTED = {
    "gpt2": (models.new_gpt2, "transformer.h", "attn.output[0]", "mlp.output"),
    "llama": (models.new_llama, "model.layers", "self_attn.output[0]", "mlp.output"),
    "gemma2": (
        _NEW["gemma2"],
        "model.layers",
        "post_attention_layernorm.output",
        "post_feedforward_layernorm.output",
    ),
    "gemma3": (
        _NEW["gemma3"],
        "model.layers",
        "post_attention_layernorm.output",
        "post_feedforward_layernorm.output",
    ),
    "bloom": (
        _NEW["bloom"],
        "transformer.h",
        "self_attention.dense.output",
        "mlp.dense_4h_to_h.output",
    ),
    "gpt_neox": (
        _NEW["gpt_neox"],
        "gpt_neox.layers",
        "post_attention_dropout.output",
        "post_mlp_dropout.output",
    ),
    "gpt_neox_sequential": (
        lambda: _sequential_neox(),
        "gpt_neox.layers",
        "post_attention_dropout.output",
        "post_mlp_dropout.output",
    ),
    "olmo2": (
        lambda: built("Olmo2ForCausalLM", "Olmo2Config", **_OLMO2),
        "model.layers",
        "post_attention_layernorm.output",
        "post_feedforward_layernorm.output",
    ),
}


def _sequential_neox() -> nn.Module:
    module: nn.Module = _NEW["gpt_neox"]()
    for layer in module.gpt_neox.layers:  # type: ignore[union-attr]
        layer.use_parallel_residual = False
    return module


@pytest.fixture(params=EXPECTED)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def ids() -> torch.Tensor:
    return models.token_ids(models.LONG, "a bird flew over the cat on one")


def parts(location: str) -> tuple[str, int | None]:
    """Return the path of a module, and which element of its output is meant."""
    match = re.fullmatch(r"(.+)\.output(?:\[(\d+)\])?", location)
    assert match is not None, location
    return match[1], int(match[2]) if match[2] else None


def element(value: Any, index: int | None) -> torch.Tensor:
    found: torch.Tensor = value if index is None else value[index]
    return found


def test_the_report_names_the_contributions(name: str) -> None:
    new, layers, attention, mlp = EXPECTED[name]
    report = layers_report(NNsight(new()), ids())
    assert [layer.path for layer in report.layers] == [f"{layers}.{i}" for i in range(3)]
    for layer in report.layers:
        assert layer.attention == f"{layer.path}.{attention}"
        assert layer.mlp == f"{layer.path}.{mlp}"
        assert layer.holds
        assert 0 <= layer.largest_error < 1e-5


def test_the_named_locations_add_up_in_another_trace(name: str) -> None:
    new, *_ = EXPECTED[name]
    model = NNsight(new())
    for found in layers_report(model, ids()).layers:
        assert found.attention is not None and found.mlp is not None
        layer = model.get(found.path)
        (one, first), (other, second) = parts(found.attention), parts(found.mlp)
        at_attention, at_mlp = model.get(one), model.get(other)
        # other words than the report's run had
        with model.trace(models.token_ids("ten tree sat on")):
            before = layer.input.clone().save()
            attention = element(at_attention.output, first).clone().save()
            mlp = element(at_mlp.output, second).clone().save()
            returned = layer.output
            after = element(returned, 0 if isinstance(returned, tuple) else None).clone().save()
        assert attention.abs().max() > 1e-3 and mlp.abs().max() > 1e-3
        torch.testing.assert_close(before + attention + mlp, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_ablating_a_location_is_what_a_hook_does(name: str, part: str) -> None:
    new, *_ = EXPECTED[name]
    model, plain = NNsight(new()), new()
    found = layers_report(model, ids()).layers[1]
    path, index = parts(getattr(found, part))
    place = model.get(path)
    with model.trace(ids()):
        element(place.output, index)[:] = 0
        logits = model.output.logits.save()

    def without(output: Any) -> Any:
        zeros = torch.zeros_like(element(output, index))
        if index is None:
            return zeros
        return (*output[:index], zeros, *output[index + 1 :])

    untouched = plain(ids()).logits
    with models.hooked(plain, {path: without}):
        expected = plain(ids()).logits
    assert torch.equal(logits, expected)
    assert not torch.allclose(expected, untouched, atol=1e-3)


def test_the_model_is_left_as_it_was(name: str) -> None:
    new, *_ = EXPECTED[name]
    module = new()
    before = module(ids()).logits
    layers_report(NNsight(module), ids())
    assert torch.equal(module(ids()).logits, before)


def test_with_dropout_bloom_adds_what_an_operation_makes() -> None:
    module = built(
        "BloomForCausalLM", "BloomConfig", vocab_size=len(models.WORDS), hidden_size=16,
        n_layer=2, n_head=2, initializer_range=0.4, hidden_dropout=0.5,
        bos_token_id=models.EOS, eos_token_id=models.EOS, pad_token_id=models.PAD,
    ).train()  # fmt: skip
    model = NNsight(module)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = layers_report(model, ids()).layers[0]
        dense = "transformer.h.0.self_attention.source.dropout_add_0.source"
        assert found.holds
        assert found.attention == f"{dense}.F_dropout_0.output"
        block = model.transformer.h[0]
        with model.trace(ids()):
            before = block.input.clone().save()
            attention = (
                block.self_attention.source.dropout_add_0.source.F_dropout_0.output.clone().save()
            )
            mlp = block.mlp.source.dropout_add_0.source.F_dropout_0.output.clone().save()
            after = block.output[0].clone().save()
    torch.testing.assert_close(before + attention + mlp, after.view_as(before))


def test_half_precision_is_judged_by_its_own_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        report = layers_report(NNsight(models.new_llama().to(dtype)), ids())
        assert all(layer.holds for layer in report.layers)


def test_a_sum_that_does_not_hold_has_no_locations() -> None:
    class Doubled(nn.Module):
        """A layer that multiplies the residual stream after it has added to it."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(4, 4)
            self.mlp = nn.Linear(4, 4)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden + self.attention(hidden)
            hidden = hidden + self.mlp(hidden)
            return hidden * 2

    report = layers_report(NNsight(nn.Sequential(Doubled(), Doubled())), torch.randn(2, 3, 4))
    assert [layer.path for layer in report.layers] == ["0", "1"]
    for layer in report.layers:
        assert (layer.attention, layer.mlp, layer.holds) == (None, None, False)
        assert layer.largest_error > 0
    assert repr(report).count("is not verified") == 2
    assert repr(report).count("not found") == 4


def test_a_third_contribution_is_told() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(4, 4)
            self.cross_attention = nn.Linear(4, 4)
            self.mlp = nn.Linear(4, 4)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden + self.attention(hidden)
            hidden = hidden + self.cross_attention(hidden)
            return hidden + self.mlp(hidden)

    report = layers_report(NNsight(nn.Sequential(Crossed(), Crossed())), torch.randn(2, 3, 4))
    assert not any(layer.holds for layer in report.layers)
    assert all(layer.attention is None for layer in report.layers)


def test_additions_in_place_are_followed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(4, 4)
            self.mlp = nn.Linear(4, 4)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            hidden += self.attention(hidden)
            hidden += self.mlp(hidden)
            return hidden

    module = nn.Sequential(InPlace(), InPlace())
    report = layers_report(NNsight(module), torch.randn(2, 3, 4))
    assert [layer.holds for layer in report.layers] == [True, True]
    assert report.layers[1].attention == "1.attention.output"
    assert report.layers[1].mlp == "1.mlp.output"


def test_contributions_that_are_summed_in_place_are_taken_apart() -> None:
    module = built(
        "FalconForCausalLM", "FalconConfig", vocab_size=len(models.WORDS), hidden_size=16,
        num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=models.EOS, eos_token_id=models.EOS, pad_token_id=models.PAD,
    )  # fmt: skip
    found = layers_report(NNsight(module), ids()).layers[1]
    assert found.holds
    assert found.attention == "transformer.h.1.self_attention.output[0]"
    assert found.mlp == "transformer.h.1.mlp.output"


def test_a_scaled_contribution_is_an_operation() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(4, 4)
            self.mlp = nn.Linear(4, 4)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden + self.attention(hidden) * 0.5
            return hidden + 0.25 * self.mlp(hidden)

    report = layers_report(NNsight(nn.Sequential(Scaled(), Scaled())), torch.randn(2, 3, 4))
    assert report.layers[0].holds
    assert report.layers[0].attention == "0.source.mul_0.output"
    assert report.layers[0].mlp == "0.source.mul_1.output"


def test_it_prints_as_a_plain_table() -> None:
    printed = repr(layers_report(NNsight(models.new_gpt2()), ids()))
    assert "\x1b" not in printed
    lines = printed.splitlines()
    assert lines[0].split()[:3] == ["layer", "attention", "mlp"]
    assert lines[2].split()[:3] == [
        "transformer.h.0",
        "transformer.h.0.attn.output[0]",
        "transformer.h.0.mlp.output",
    ]


def test_a_prompt_is_an_input_as_for_a_trace() -> None:
    report = layers_report(models.wrapped(models.GPT2), models.SHORT)
    assert [layer.holds for layer in report.layers] == [True, True, True]


def test_modules_that_take_no_tensor_are_no_layers() -> None:
    class OfPair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(4, 4)

        def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> Any:
            return pair[0] + self.mlp(pair[1]), pair[1]

    model = NNsight(nn.Sequential(OfPair(), OfPair()))
    with pytest.raises(ValueError, match="has no list of modules of one class"):
        layers_report(model, (torch.randn(2, 4), torch.randn(2, 4)))


def test_a_model_without_layers_is_refused() -> None:
    model = NNsight(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.raises(ValueError, match="has no list of modules of one class"):
        layers_report(model, torch.randn(3, 4))
