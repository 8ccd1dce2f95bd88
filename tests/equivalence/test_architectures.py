"""Decoders, encoders, mixtures of experts and state space models, beside hand-written hooks."""

from typing import Any

import pytest
import torch

from nnsight_dsl import LanguageModel
from tests import models
from tests.architectures import DECODERS, ENCODERS, RECURRENT
from tests.models import LONG, SHORT, Kind, assert_near, assert_same, bare, encoded, hooked

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
GENERATES = (*DECODERS, *RECURRENT)


@pytest.fixture(params=(*DECODERS, *ENCODERS, *RECURRENT), ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def model(kind: Kind) -> LanguageModel:
    return models.wrapped(kind)


def _first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def test_a_cache_has_what_hooks_record_of_every_module(kind: Kind, model: LanguageModel) -> None:
    def cloned(value: Any) -> Any:
        return torch.utils._pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value
        )

    seen: dict[str, list[Any]] = {}
    paths = [path for path, _ in bare(kind).named_modules()]
    after = {
        path: lambda output, path=path: seen.setdefault(path, []).append(cloned(output))
        for path in paths
    }
    with hooked(bare(kind), after):
        bare(kind)(**encoded(LONG))
    with model.trace(LONG) as tracer:
        cache = tracer.cache()
    assert len(cache) == len(seen) > 15
    for path, outputs in seen.items():
        assert_same(cache[f"model.{path}" if path else "model"].outputs, outputs)


def test_reads_are_what_hooks_see(kind: Kind, model: LanguageModel) -> None:
    layer = kind.layer(1)
    mixing, mlp = f"{layer}.{kind.attention}", f"{layer}.{kind.mlp}"
    given = []
    paths = [kind.embedding, mixing, mlp, layer, kind.head]
    before = {layer: lambda args, kwargs: given.append(args[0])}
    with models.recorded(bare(kind), paths) as seen, hooked(bare(kind), before=before):
        logits = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG):
        embedded = model.get(kind.embedding).output.save()
        entered = model.get(layer).input.save()
        mixed = model.get(mixing).output.save()
        fed = (mixed if mlp == mixing else model.get(mlp).output).save()
        hidden = model.get(layer).output.save()
        scores = model.get(kind.head).output.save()
        said = model.output.logits.save()
    assert_same(entered, given[0])
    assert_same([embedded, mixed, fed, hidden, scores], [seen[path][0] for path in paths])
    assert_same(said, logits)


def test_an_edit_in_place_is_a_hook_that_edits(kind: Kind, model: LanguageModel) -> None:
    def edit(output: Any) -> None:
        _first(output)[:, -1] = 0.5

    path = f"{kind.layer(1)}.{kind.mlp}"
    with hooked(bare(kind), {path: edit}):
        expected = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG):
        edited = model.get(path).output
        (edited if isinstance(edited, torch.Tensor) else edited[0])[:, -1] = 0.5
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert not torch.equal(logits, models.logits_of(kind, LONG))


def test_a_replacement_is_a_hook_that_returns(kind: Kind, model: LanguageModel) -> None:
    layer, head = kind.layer(1), kind.head
    with hooked(
        bare(kind),
        {head: lambda output: output - 1},
        {layer: lambda args, kwargs: ((args[0] * 0.5, *args[1:]), kwargs)},
    ):
        expected = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG):
        model.get(layer).input = model.get(layer).input * 0.5
        model.get(head).output = model.get(head).output - 1
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_a_skipped_layer_returns_what_it_was_given(kind: Kind, model: LanguageModel) -> None:
    before, skipped = kind.layer(0), kind.layer(1)
    previous = []
    with hooked(
        bare(kind),
        {before: lambda output: previous.append(output), skipped: lambda output: previous[0]},
    ):
        expected = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG):
        model.get(skipped).skip(model.get(before).output)
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_unequal_prompts_and_their_edits_stay_apart(kind: Kind, model: LanguageModel) -> None:
    layer = kind.layer(1)

    def edit(output: Any) -> Any:
        return output * 2 if isinstance(output, torch.Tensor) else (output[0] * 2, *output[1:])

    with hooked(bare(kind), {layer: edit}):
        edited = bare(kind)(**encoded(SHORT)).logits
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            model.get(layer).output = edit(model.get(layer).output)
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            hidden = model.get(layer).output.save()
            long = model.output.logits.save()
        with tracer.invoke():
            both = model.output.logits.save()
    assert_near(kind.own(short, SHORT), edited)
    assert_near(kind.own(long, LONG), models.logits_of(kind, LONG))
    assert_near(kind.own(_first(hidden), LONG), _first(models.output_of(kind, LONG, layer)))
    assert_same(both, torch.cat([short, long]))


@pytest.mark.parametrize("kind", GENERATES, ids=lambda kind: kind.name)
def test_each_step_of_a_generation_is_a_call_of_the_hook(kind: Kind, model: LanguageModel) -> None:
    layer = kind.layer(1)
    with models.recorded(bare(kind), [layer]) as seen:
        expected = bare(kind).generate(**encoded(LONG), **GREEDY)
    with model.generate(LONG, **GREEDY) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(model.get(layer).output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert len(hidden) == 4
    assert_same([_first(one) for one in hidden], [_first(one) for one in seen[layer]])


@pytest.mark.parametrize("kind", GENERATES, ids=lambda kind: kind.name)
def test_an_edit_of_one_step_is_a_hook_that_counts(kind: Kind, model: LanguageModel) -> None:
    head = kind.head
    calls = []

    def edit(output: torch.Tensor) -> None:
        calls.append(output)
        if len(calls) == 3:
            output[..., 7] = 1e4

    with hooked(bare(kind), {head: edit}):
        expected = bare(kind).generate(**encoded(LONG), **GREEDY)
    with model.generate(LONG, **GREEDY) as tracer:
        for _ in tracer.iter[2]:
            model.get(head).output[..., 7] = 1e4
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert tokens[0, -2] == 7


@pytest.mark.parametrize("kind", GENERATES, ids=lambda kind: kind.name)
def test_unequal_prompts_generate_what_they_generate_alone(
    kind: Kind, model: LanguageModel
) -> None:
    with model.generate(**GREEDY) as tracer:
        with tracer.invoke(SHORT):
            short = tracer.result.save()
        with tracer.invoke(LONG):
            long = tracer.result.save()
    for tokens, prompt in ((short, SHORT), (long, LONG)):
        expected = bare(kind).generate(**encoded(prompt), **GREEDY)
        assert tokens[0, -4:].tolist() == expected[0, -4:].tolist()


def test_routed_experts_are_read_and_their_weights_replaced() -> None:
    kind = next(kind for kind in DECODERS if kind.name == "mixtral")
    model = models.wrapped(kind)
    path = "model.layers.1.mlp.gate"

    def first_expert_alone(output: Any) -> Any:
        logits, weights, experts = output
        alone = torch.zeros_like(weights)
        alone[:, 0] = 1
        return logits, alone, experts

    with models.recorded(bare(kind), [path]) as seen:
        with hooked(bare(kind), {path: first_expert_alone}):
            expected = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG):
        routed = model.get(path).output.save()
        model.get(path).output = first_expert_alone(routed)
        logits = model.output.logits.save()
    assert_same(routed, seen[path][0])
    assert_same(logits, expected)
    assert not torch.equal(logits, models.logits_of(kind, LONG))
