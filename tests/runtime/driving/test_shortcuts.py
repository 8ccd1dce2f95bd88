"""What the hot path leaves out, where that would make a difference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.runtime.errors import OutOfOrderError

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Net(nn.Module):
    """Two layers, and a head that is an element of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Batching(NNsight):
    """Makes one batch of the rows of several inputs."""

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return len(inputs[0]) if inputs else 0

    def _batch(self, invokes: Any, fn: Any) -> Any:
        return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def first_output(model: NNsight) -> torch.Tensor:
    with model.trace(X):
        hidden = model.layers[0].output.save()
    return hidden


def test_a_hook_before_the_call_still_changes_the_input(net: Net) -> None:
    model = NNsight(net)
    handle = net.layers[0].register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    with handle:
        assert torch.equal(first_output(model), net.layers[0].forward(X * 2))
    assert torch.equal(first_output(model), net.layers[0](X))


def test_a_hook_of_all_modules_is_called_for_a_tapped_one(net: Net) -> None:
    model, called = NNsight(net), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _args, _output: called.append(module)
    )
    with handle:
        first_output(model)
    assert net.layers[0] in called


def test_a_backward_hook_is_called_for_a_tapped_module(net: Net) -> None:
    model, called = NNsight(net), []
    x = X.clone().requires_grad_()
    with net.layers[0].register_full_backward_hook(lambda *_: called.append(1)):
        with model.trace(x):
            hidden = model.layers[0].output.save()
            result = model.output.save()
        result.sum().backward()
    assert called == [1]


def test_what_stands_in_for_the_call_of_a_compiled_module_is_called(net: Net) -> None:
    model = NNsight(net)
    net.layers[0]._compiled_call_impl = lambda x: torch.zeros_like(x)
    assert torch.equal(first_output(model), torch.zeros_like(X))


def test_a_class_with_a_call_of_its_own_keeps_it(net: Net) -> None:
    class Doubling(nn.Linear):
        def __call__(self, *args: Any) -> Any:
            return 2 * super().__call__(*args)

    net.layers[0] = Doubling(4, 4)
    model = NNsight(net)
    for _ in range(2):
        assert torch.equal(first_output(model), 2 * net.layers[0].forward(X))


def test_a_run_after_one_that_read_an_input_and_skipped_is_as_the_first(net: Net) -> None:
    model = NNsight(net)

    def edited(kind: str) -> torch.Tensor:
        with model.trace(X):
            if kind == "skipped":
                model.layers[1].skip(torch.zeros(2, 4))
            if kind == "doubled":
                model.layers[1].input = model.layers[1].input * 2
            result = model.layers[1].output.save()
        return result

    plain = net.layers[1](net.layers[0](X))
    for kind in ("plain", "skipped", "plain", "doubled", "plain"):
        expected = {
            "plain": plain,
            "skipped": torch.zeros(2, 4),
            "doubled": net.layers[1](2 * net.layers[0](X)),
        }[kind]
        assert torch.equal(edited(kind), expected)


def test_a_run_after_one_that_failed_is_as_the_first(net: Net) -> None:
    model = NNsight(net)

    def twice(is_late: bool) -> Any:
        with model.trace(X):
            late = model.layers[1].output
            if is_late:
                early = model.layers[0].output
            late = late.save()
        return late

    for _ in range(2):
        with pytest.raises(OutOfOrderError):
            twice(True)
        assert torch.equal(twice(False), net.layers[1](net.layers[0](X)))
    assert {type(one) for one in net.modules()} == {Net, nn.Linear, nn.ModuleList}


def test_an_exchanged_module_is_the_one_that_is_read(net: Net) -> None:
    model = NNsight(net)
    first_output(model)
    net.layers[0] = nn.Linear(4, 4)
    assert torch.equal(first_output(model), net.layers[0](X))
    net.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    assert torch.equal(first_output(model), net.layers[0](X))


def test_a_module_of_another_class_than_last_time_is_read(net: Net) -> None:
    net.layers[0] = nn.LazyLinear(4)
    model = NNsight(net)
    for _ in range(3):
        assert torch.equal(first_output(model), net.layers[0](X))
        assert type(net.layers[0]) is nn.Linear


@pytest.fixture(params=[True, False], ids=["autograd", "no autograd"])
def has_grad(request: pytest.FixtureRequest) -> Iterator[bool]:
    with torch.set_grad_enabled(request.param):
        yield request.param


def test_invokes_read_and_edit_their_rows(net: Net, has_grad: bool) -> None:
    model = Batching(net)
    one, two, three = X[:1], X[1:], X + 1
    with model.trace() as tracer:
        with tracer.invoke(one):
            first = model.layers[0].output.save()
        with tracer.invoke(two):
            model.layers[0].output[:] = 0
            second = model.layers[1].output.save()
        with tracer.invoke(three):
            model.layers[0].output = model.layers[0].output * 2
            third = model.layers[1].output.save()
        with tracer.invoke():
            whole = model.layers[1].output.save()
    assert torch.allclose(first, net.layers[0](one))
    assert torch.allclose(second, net.layers[1](torch.zeros(1, 4)))
    assert torch.allclose(third, net.layers[1](net.layers[0](three) * 2))
    assert torch.equal(whole[1:2], second)
    assert torch.equal(whole[2:], third)


def test_a_read_after_a_replacement_by_an_earlier_invoke_sees_its_own_rows(
    net: Net, has_grad: bool
) -> None:
    model = Batching(net)
    with model.trace() as tracer:
        with tracer.invoke(X[:1]):
            model.layers[0].output = torch.ones(1, 4)
        with tracer.invoke(X[1:]):
            hidden = model.layers[0].output.save()
        with tracer.invoke():
            whole = model.layers[0].output.save()
    assert torch.allclose(hidden, net.layers[0](X[1:]))
    assert torch.equal(whole, torch.cat([torch.ones(1, 4), hidden]))


@pytest.mark.parametrize("where", ["instance", "class"])
def test_what_stands_in_for_torchs_own_call_is_called(net: Net, where: str) -> None:
    class Own(nn.Linear):
        pass

    net.layers[0] = layer = Own(4, 4)
    model = NNsight(net)
    first_output(model)

    def twice(*args: Any) -> Any:
        return 2 * nn.Module._call_impl(layer, args[-1])

    if where == "class":
        Own._call_impl = twice  # type: ignore[method-assign]
    else:
        layer._call_impl = twice  # type: ignore[method-assign]
    assert torch.equal(first_output(model), layer(X))


def test_a_layer_that_was_deleted_is_not_read_any_more(net: Net) -> None:
    net.layers.append(nn.Linear(4, 4))
    model = NNsight(net)

    def second() -> torch.Tensor:
        with model.trace(X):
            hidden = model.layers[1].output.save()
        return hidden

    second()
    del net.layers[0]
    seen: list[torch.Tensor] = []
    hook = net.layers[1].register_forward_hook(lambda *given: seen.append(given[2]))
    found = second()
    hook.remove()
    assert torch.equal(found, seen[0])


def test_a_list_with_names_of_its_own_goes_on_when_one_is_gone(net: Net) -> None:
    net.layers = layers = nn.ModuleList()
    layers.add_module("a", nn.Linear(4, 4))
    layers.add_module("b", nn.Linear(4, 4))
    model = NNsight(net)
    assert torch.equal(first_output(model), layers.a(X))
    del layers._modules["a"]
    assert torch.equal(first_output(model), layers.b(X))


def test_another_thread_may_be_about_to_call_a_module_when_a_run_ends(net: Net) -> None:
    model = NNsight(net)
    first_output(model)
    fit = next(iter(model._fits.values()))
    assert fit.needs.fixtures is not None
    for tap, *_ in fit.needs.fixtures._all:
        assert tap.driver.thread == -1


def test_a_failure_that_the_model_swallows_is_the_one_that_is_raised(net: Net) -> None:
    class Swallowing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.layers[0](x)
            except BaseException:
                return self.layers[1](x)

    model = Batching(Swallowing())
    with pytest.raises(ZeroDivisionError):
        with model.trace() as tracer:
            with tracer.invoke(X):
                _ = model.layers[0].output.sum() / (1 // 0)
            with tracer.invoke(X):
                head = model.head.output.save()
