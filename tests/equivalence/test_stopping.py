"""`stop="auto"` ends the forward early, and the block has what it has without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, intervene
from tests.models import GPT2, LLAMA, MIDDLE, SHORT, assert_same, new_gpt2, wrapped


class Layers(nn.Module):
    """Layers that count how often they were called; the second edits what the first returns."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=inplace)
        self.second = nn.Linear(3, 3)
        self.third = nn.Linear(3, 3)
        self.calls: list[str] = []
        for name in ("first", "relu", "second", "third"):
            self.get_submodule(name).register_forward_hook(
                lambda _m, _a, _o, name=name: self.calls.append(name)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.relu(self.first(x))))


def layers(*, inplace: bool = False) -> tuple[NNsight, Layers]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = Layers(inplace=inplace)
    return NNsight(module), module


X = torch.linspace(-1, 1, 6).reshape(2, 3)


def test_the_forward_ends_where_the_last_block_does():
    model, module = layers()
    with model.trace(X, stop="auto"):
        hidden = model.second.output.save()
    assert module.calls == ["first", "relu", "second"]
    assert_same(hidden, module.second(torch.relu(module.first(X))))


def test_a_value_before_the_call_stops_before_the_call():
    model, module = layers()
    with model.trace(X, stop="auto"):
        hidden = model.second.input.save()
    assert module.calls == ["first", "relu"]
    assert_same(hidden, torch.relu(module.first(X)))


def test_a_value_that_the_model_edits_later_is_waited_for():
    model, module = layers(inplace=True)
    with model.trace(X):
        whole = model.first.output.save()
    module.calls.clear()
    with model.trace(X, stop="auto"):
        hidden = model.first.output.save()
    assert module.calls == ["first", "relu", "second", "third"]
    assert_same(hidden, whole)
    assert hidden.min() >= 0
    module.calls.clear()
    with model.trace(X, stop="auto"):
        hidden = model.relu.output.save()
    assert module.calls == ["first", "relu"]


def test_without_the_option_the_forward_runs_to_its_end():
    model, module = layers()
    with model.trace(X):
        model.first.output.save()
    assert module.calls == ["first", "relu", "second", "third"]


def test_the_result_is_waited_for():
    model, module = layers()
    with model.trace(X, stop="auto") as tracer:
        model.first.output.save()
        result = tracer.result.save()
    assert_same(result, module(X))


def test_a_cache_is_waited_for():
    model, module = layers()
    with model.trace(X, stop="auto") as tracer:
        cache = tracer.cache()
        model.first.output
    assert module.calls == ["first", "relu", "second", "third"]
    assert len(cache) == 5


def test_an_edit_of_the_wrapper_is_waited_for():
    model, module = layers()
    with model.edit() as edited:
        edited.third.output[:] = 0
    with edited.trace(X, stop="auto"):
        edited.first.output.save()
    assert module.calls[-1] == "third"


def test_the_last_of_several_invokes_ends_the_forward():
    model = wrapped(LLAMA)
    calls: list[int] = []
    hook = model._module.model.layers[2].register_forward_hook(lambda *_: calls.append(1))
    try:
        with model.trace(stop="auto") as tracer:
            with tracer.invoke(MIDDLE):
                first = model.model.layers[1].output.save()
            with tracer.invoke(SHORT):
                second = model.model.layers[0].output.save()
    finally:
        hook.remove()
    assert not calls
    with model.trace() as tracer:
        with tracer.invoke(MIDDLE):
            expected_first = model.model.layers[1].output.save()
        with tracer.invoke(SHORT):
            expected_second = model.model.layers[0].output.save()
    assert_same(first, expected_first)
    assert_same(second, expected_second)


def test_user_code_runs_as_often_as_without():
    model = wrapped(GPT2)
    runs: list[int] = []
    for option in ({}, {"stop": "auto"}):
        runs.clear()
        with model.trace(MIDDLE, **option):
            runs.append(1)
            model.transformer.h[0].output.save()
        assert runs == [1]


def test_a_stopped_run_leaves_the_model_as_it_was():
    module = new_gpt2()
    before = {path: (type(one), {*vars(one)}) for path, one in module.named_modules()}
    model = NNsight(module)
    with model.trace(input_ids=torch.tensor([[1, 2]]), stop="auto"):
        model.transformer.h[0].output.save()
    for path, one in module.named_modules():
        assert type(one) is before[path][0]
        assert {*vars(one)} == before[path][1]
        assert not one._forward_hooks
        assert not one._forward_pre_hooks


def test_an_intervention_by_itself_is_stopped():
    @intervene
    def look(model):
        return model.first.output

    model, module = layers()
    assert_same(look.run(model, X, stop="auto"), module.first(X))


@pytest.mark.parametrize("value", ["soon", True, 3])
def test_any_other_stop_is_refused(value):
    model, _ = layers()
    with pytest.raises(ValueError, match="is not known"):
        model.trace(X, stop=value)


def test_a_generation_is_not_stopped_by_itself():
    with pytest.raises(ValueError, match="generate"):
        wrapped(GPT2).generate(MIDDLE, max_new_tokens=2, stop="auto")
