"""A sweep returns what its programs return one by one, and says how it ran them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnsight_dsl import InterventionError, LanguageModel, NNsight, intervene, sweep
from nnsight_dsl.errors import InterventionArgumentError
from tests.models import GPT2, LLAMA, MIDDLE, Kind, assert_near, new_gpt2, tokenizer, wrapped

KINDS = {"gpt2": GPT2, "llama": LLAMA}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(6, 6)
        self.mlp = nn.Linear(6, 6)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + torch.tanh(self.attn(hidden))
        return hidden + torch.tanh(self.mlp(hidden))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def stack() -> NNsight:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NNsight(Stack().eval())


def language_kind(name: str) -> tuple[NNsight, object, Kind]:
    kind = KINDS.get(name)
    if kind is not None:
        return wrapped(kind), MIDDLE, kind
    kind = Kind("stack", Stack, "layers", "attn", "mlp", "embed", "head")
    return stack(), torch.linspace(-1, 1, 12).reshape(1, 3, 4), kind


@intervene
def patch(model, kind, place: str, how: str, layer: int, scale: float):
    """Write at a place in one of several ways, with reads before it and after it."""
    first = model.get(kind.embedding).output
    before = first.sum(-1)
    if place == "embedding":
        target = model.get(kind.embedding)
    elif place == "layer" or place == "layer input":
        target = model.get(kind.layer(layer))
    elif place == "mlp":
        target = model.get(f"{kind.layer(layer)}.{kind.mlp}")
    else:
        target = model.get(kind.head)
    if place == "layer input":
        if how == "replaced":
            target.input = target.input * scale
        elif how == "in place":
            target.input.mul_(scale)
        else:
            target.input[:, -1] = scale
    elif how == "replaced":
        target.output = target.output * scale
    elif how == "in place":
        value = target.output
        value += scale
    else:
        target.output[:, -1] = scale
    after = model.get(kind.head).output
    return before, after * 2, model.output


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*KINDS, "stack"]),
    place=st.sampled_from(["embedding", "layer", "layer input", "mlp", "head"]),
    how=st.sampled_from(["replaced", "in place", "element"]),
    layers=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    scales=st.lists(st.sampled_from([0.0, 0.5, -1.0]), min_size=1, max_size=2),
)
def test_a_sweep_returns_what_a_loop_returns(name, place, how, layers, scales):
    model, prompt, kind = language_kind(name)
    found = sweep(
        patch,
        over={"layer": layers, "scale": scales},
        model=model,
        prompt=prompt,
        kind=kind,
        place=place,
        how=how,
    )
    assert [(one["layer"], one["scale"]) for one in found.points] == [
        (layer, scale) for layer in layers for scale in scales
    ]
    assert found.form == "shared", found.reason
    for point, (before, after, result) in zip(found.points, found, strict=True):
        expected = patch.run(model, prompt, kind=kind, place=place, how=how, **point)
        assert_near(before, expected[0])
        assert_near(after, expected[1])
        logits, one = (
            r if isinstance(r, torch.Tensor) else r.logits for r in (result, expected[2])
        )
        assert_near(logits, one)


@intervene
def ablate(model, layer: int):
    model.transformer.h[layer].mlp.output[:] = 0
    return model.lm_head.output[:, -1]


def test_rows_up_to_the_first_write_are_computed_once():
    model = NNsight(Stack().eval())
    rows: dict[str, int] = {}

    @intervene
    def scale(model, layer: int):
        model.layers[layer].mlp.output[:] *= 2
        return model.head.output

    for number, layer in enumerate(model._module.layers):
        layer.register_forward_hook(
            lambda _m, _a, output, n=number: rows.__setitem__(str(n), output.shape[0])
        )
    found = sweep(scale, over={"layer": range(3)}, model=model, prompt=torch.ones(1, 2, 4))
    assert found.form == "shared"
    # the last one takes the trunk over
    assert rows == {"0": 2, "1": 3, "2": 3}


def test_a_program_that_only_reads_needs_no_row_of_its_own():
    @intervene
    def look(model, layer: int):
        return model.transformer.h[layer].output

    model = wrapped(GPT2)
    found = sweep(look, over={"layer": [0, 0, 2]}, model=model, prompt=MIDDLE)
    assert found.form == "shared"
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, look.run(model, MIDDLE, **point))
    found[0].zero_()
    assert found[1].abs().sum() > 0


def test_a_skip_parts_from_the_trunk():
    @intervene
    def skip(model, layer: int):
        block = model.transformer.h[layer]
        block.skip(block.input)
        return model.lm_head.output

    model = wrapped(GPT2)
    found = sweep(skip, over={"layer": range(3)}, model=model, prompt=MIDDLE)
    assert found.form == "shared"
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, skip.run(model, MIDDLE, **point))


def test_edits_of_the_wrapper_hold_in_a_sweep():
    model = wrapped(GPT2)
    with model.edit() as edited:
        edited.transformer.h[1].output[:] *= 0.5
    found = sweep(ablate, over={"layer": range(3)}, model=edited, prompt=MIDDLE)
    assert found.form == "shared"
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, ablate.run(edited, MIDDLE, **point))


def test_rows_part_before_transformers_captures_what_they_were():
    @intervene
    def halve(model, layer: int):
        model.transformer.h[layer].output = model.transformer.h[layer].output * 0.5
        return model.output.hidden_states[-1]

    model = LanguageModel(new_gpt2(), tokenizer=tokenizer())
    options = {"output_hidden_states": True}
    # from the first such call on, the hooks that capture stand on the layers
    model.trace(MIDDLE, trace=False, **options)
    found = sweep(halve, over={"layer": [0, 0, 1, 2]}, model=model, prompt=MIDDLE, **options)
    assert found.form == "shared"
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, halve.run(model, MIDDLE, **options, **point))


def test_share_false_runs_a_plain_batch():
    model = wrapped(LLAMA)

    @intervene
    def half(model, layer: int):
        model.model.layers[layer].output[:] *= 0.5
        return model.lm_head.output

    found = sweep(half, over={"layer": range(3)}, model=model, prompt=MIDDLE, share=False)
    assert (found.form, found.reason) == ("batch", "share=False was given")
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, half.run(model, MIDDLE, **point))


def test_a_cache_keeps_programs_from_sharing_rows():
    @intervene
    def cached(model, tracer, layer: int):
        kept = tracer.cache(modules=[model.lm_head])
        model.transformer.h[layer].mlp.output[:] = 0
        return kept

    model = wrapped(GPT2)
    found = sweep(cached, over={"layer": range(2)}, model=model, prompt=MIDDLE)
    assert (found.form, found.reason) == (
        "batch",
        "a cache is kept, which has the rows of one machine",
    )
    for point, kept in zip(found.points, found, strict=True):
        alone = cached.run(model, MIDDLE, **point)
        assert_near(kept.model.lm_head.output, alone.model.lm_head.output)


def test_an_edit_after_its_location_has_passed_is_not_shared():
    @intervene
    def late(model, layer: int):
        hidden = model.transformer.h[0].output
        model.transformer.h[layer].mlp.output[:] = 0
        hidden[:] = 0
        return model.lm_head.output

    model = wrapped(GPT2)
    found = sweep(late, over={"layer": [1, 2]}, model=model, prompt=MIDDLE)
    assert found.form == "batch"
    assert found.reason == "a value is edited in place after its location has passed"


def test_a_backward_pass_is_not_shared():
    @intervene
    def gradient(model, layer: int):
        hidden = model.transformer.h[layer].output
        loss = model.lm_head.output.sum()
        with loss.backward():
            found = hidden.grad
        return found

    model = wrapped(GPT2)
    found = sweep(gradient, over={"layer": [0, 2]}, model=model, prompt=MIDDLE)
    assert (found.form, found.reason) == ("batch", "a program goes back through the graph")
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, gradient.run(model, MIDDLE, **point))


class FixesItsRows(nn.Module):
    """A forward that decides how many rows there are before its layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        for layer in self.layers:
            x = layer(x).reshape(rows, 4)
        return x


class Averages(FixesItsRows):
    """A forward whose result has no rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.mean(0, keepdim=True)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (FixesItsRows, "the model cannot be widened in the middle (RuntimeError)"),
        (Averages, "the model's result does not have a row for each row of the batch"),
    ],
)
def test_a_model_that_cannot_be_widened_runs_in_a_loop(cls, reason, is_training):
    @intervene
    def double(model, layer: int):
        model.layers[layer].output = model.layers[layer].output * 2
        return model.output

    model, x = NNsight(cls().train(is_training)), torch.ones(1, 4)
    found = sweep(double, over={"layer": [0, 1]}, model=model, prompt=x)
    assert (found.form, found.reason) == ("loop", f"{reason}, and the model makes no batches")
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, double.run(model, x, **point))


def test_batch_normalisation_keeps_programs_apart():
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.0)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    @intervene
    def scale(model, factor: float):
        model.layers[0].output[:] *= factor
        return model.output

    model, x = NNsight(Normalised()), torch.linspace(-1, 1, 12).reshape(1, 4, 3)
    model._module.layers[0] = nn.Linear(3, 3)
    found = sweep(scale, over={"factor": [0.5, 3.0]}, model=model, prompt=x)
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, scale.run(model, x, **point))
    assert (found.form, found.reason) == ("loop", "the model normalises over the batch")


def test_options_of_a_single_run_are_refused():
    with pytest.raises(TypeError, match="no option 'log'"):
        sweep(ablate, over={"layer": [0]}, model=wrapped(GPT2), prompt=MIDDLE, log=True)


def test_interventions_beside_a_sweep_hold_for_all():
    @intervene
    def halve(model):
        model.transformer.h[0].output[:] *= 0.5

    model = wrapped(GPT2)
    found = sweep(
        ablate, over={"layer": range(3)}, model=model, prompt=MIDDLE, interventions=[halve]
    )
    assert found.form == "shared"
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, ablate.run(model, MIDDLE, interventions=[halve], **point))


def test_several_rows_are_not_shared():
    model = stack()

    @intervene
    def double(model, layer: int):
        model.layers[layer].output = model.layers[layer].output * 2
        return model.output

    x = torch.ones(2, 3, 4)
    found = sweep(double, over={"layer": [0, 1]}, model=model, prompt=x)
    assert found.form == "loop"
    assert found.reason is not None and found.reason.startswith("the prompt is not a single row")
    for point, value in zip(found.points, found, strict=True):
        assert_near(value, double.run(model, x, **point))


@pytest.mark.parametrize("is_training", [False, True])
def test_a_value_may_decide_where_a_program_writes(is_training):
    @intervene
    def by_value(model, layer: int, least: float):
        if model.layers[0].output.sum() > least:
            model.layers[layer].mlp.output[:] = 0
        return model.head.output

    model, x = stack(), torch.linspace(-1, 1, 12).reshape(1, 3, 4)
    model._module.train(is_training)
    over = {"layer": [1, 2], "least": [-1e6, 1e6]}
    for prompt in (x, -x):
        found = sweep(by_value, over=over, model=model, prompt=prompt)
        for point, value in zip(found.points, found, strict=True):
            assert_near(value, by_value.run(model, prompt, **point))
        if is_training:
            # then it is looked at on fake tensors, which have no values
            assert found.form == "loop"
            assert found.reason is not None
            assert found.reason.startswith("a program does not run on fake tensors")
        else:
            assert found.form == "shared"


@pytest.mark.parametrize("can_widen", [True, False])
def test_what_a_program_does_to_its_callers_is_done_once(can_widen):
    module = (Stack() if can_widen else FixesItsRows()).eval()
    model, x = NNsight(module), torch.ones(1, 4)

    @intervene
    def adds(model, seen: list, sums: dict, total: torch.Tensor, layer: int):
        value = model.layers[layer].output
        seen.append(layer)
        sums.setdefault("all", []).append(layer)
        total += 1
        model.layers[layer].output = value * 2
        seen.append(-layer)
        return model.output

    seen: list[int] = []
    sums: dict[str, list[int]] = {}
    total = torch.zeros(1)
    given = {"seen": seen, "sums": sums, "total": total}
    for runs in (1, 2):
        found = sweep(adds, over={"layer": [0, 1]}, model=model, prompt=x, **given)
        assert found.form == ("shared" if can_widen else "loop")
        assert sorted(seen) == sorted([0, 0, 1, -1] * runs)
        assert sorted(sums["all"]) == sorted([0, 1] * runs)
        assert total.item() == 2 * runs


class Counts(FixesItsRows):
    """A forward that counts its calls, and draws lots."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        for layer in self.layers:
            x = layer(x)
        return x + self.calls + torch.rand(())


def test_a_look_beforehand_leaves_nothing_in_the_model():
    @intervene
    def double(model, layer: int):
        model.layers[layer].output = model.layers[layer].output * 2
        return model.output

    model, x = NNsight(Counts().eval()), torch.ones(1, 4)
    torch.manual_seed(0)
    first = sweep(double, over={"layer": [0, 1]}, model=model, prompt=x)
    assert first.form == "shared"
    assert model._module.calls == 1
    model._module.calls.zero_()
    torch.manual_seed(0)
    second = sweep(double, over={"layer": [0, 1]}, model=model, prompt=x)
    for one, other in zip(first, second, strict=True):
        assert_near(one, other)


def test_what_a_program_does_at_its_end_may_fail():
    @intervene
    def fails(model, layer: int):
        try:
            model.layers[layer].output = model.layers[layer].output * 2
        finally:
            raise KeyError(layer)

    with pytest.raises(KeyError):
        sweep(fails, over={"layer": [0, 1]}, model=stack(), prompt=torch.ones(1, 3, 4))


def test_a_program_that_writes_elsewhere_the_next_time_is_looked_at_again():
    where = [2]

    @intervene
    def elsewhere(model, scale: float):
        model.transformer.h[where[0]].output[:] *= scale
        return model.lm_head.output

    model = wrapped(GPT2)
    for layer in (2, 0):
        where[0] = layer
        found = sweep(elsewhere, over={"scale": [0.5, 2.0]}, model=model, prompt=MIDDLE)
        assert found.form == "shared"
        for point, value in zip(found.points, found, strict=True):
            assert_near(value, elsewhere.run(model, MIDDLE, **point))


def test_a_program_that_writes_by_chance_is_refused():
    calls = itertools.count()

    @intervene
    def by_chance(model, scale: float):
        number = 2 if next(calls) < 2 else 0
        model.transformer.h[number].output[:] *= scale
        return model.lm_head.output

    with pytest.raises(InterventionError, match="otherwise than when it was looked at"):
        sweep(by_chance, over={"scale": [0.5, 2.0, 3.0]}, model=wrapped(GPT2), prompt=MIDDLE)


def test_an_error_of_a_program_comes_out_of_the_sweep():
    @intervene
    def wrong(model, layer: int):
        model.transformer.h[layer].mlp.output[:] = 0
        raise KeyError(layer)

    with pytest.raises(KeyError):
        sweep(wrong, over={"layer": range(2)}, model=wrapped(GPT2), prompt=MIDDLE)


def test_a_sweep_leaves_the_model_as_it_was():
    module = new_gpt2()
    before = {path: (type(one), {*vars(one)}) for path, one in module.named_modules()}
    model = LanguageModel(module, tokenizer=tokenizer())
    sweep(ablate, over={"layer": range(3)}, model=model, prompt=MIDDLE)
    for path, one in module.named_modules():
        cls, names = before[path]
        assert type(one) is cls
        assert {*vars(one)} == names


def test_parameters_that_are_not_there_are_refused():
    with pytest.raises(InterventionArgumentError, match="has no parameter 'depth'"):
        sweep(ablate, over={"depth": range(2)}, model=wrapped(GPT2), prompt=MIDDLE)
    with pytest.raises(InterventionArgumentError, match="no parameter to sweep over"):
        sweep(ablate, over={}, model=wrapped(GPT2), prompt=MIDDLE)
    with pytest.raises(InterventionArgumentError, match="give a function under @intervene"):
        sweep(lambda: 0, over={"layer": [0]}, model=wrapped(GPT2), prompt=MIDDLE)


def test_no_points_run_nothing():
    found = sweep(ablate, over={"layer": []}, model=wrapped(GPT2), prompt=MIDDLE)
    assert (len(found), found.points) == (0, ())
