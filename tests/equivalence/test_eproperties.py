"""Views of served values, and values of one's own: beside the plain module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, NotCalledError, NotRunningError, OutOfOrderError, traceable
from nnsight_dsl.envoys.eproperties import eproperty
from tests.models import assert_near, assert_same

X = torch.tensor([[1.0, -2.0, 3.0, -4.0]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


class Mine(NNsight):
    @eproperty(key="output")
    def pairs(self, value: torch.Tensor) -> torch.Tensor:
        return value.unflatten(-1, (2, 2))

    @eproperty(key="output", description="a copy, in pairs")
    def copied(self, value: torch.Tensor) -> torch.Tensor:
        return value.unflatten(-1, (2, 2)).clone()

    @copied.transform
    def copied(self, view: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        assert raw.shape == (len(view), 4)
        return view.flatten(-2)

    @eproperty(key="input")
    def doubled(self, value: Any) -> torch.Tensor:
        (x,), _ = value
        return x * 2

    @doubled.postprocess
    def doubled(self, value: torch.Tensor) -> Any:
        return (value / 2,), {}

    @eproperty
    def telemetry(self, value: torch.Tensor) -> torch.Tensor:
        return value

    @traceable
    def run(self, x: torch.Tensor, times: int = 2) -> torch.Tensor:
        for _ in range(times):
            x = type(self).telemetry.provide(self, x + 1)
            x = self._module(x)
        return x

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return len(inputs[0]) if inputs else 0

    def _batch(self, invokes: Any, fn: Any) -> Any:
        return (torch.cat([inputs[0] for inputs, _ in invokes]),), invokes[0][1]


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def model(net: Net) -> Mine:
    return Mine(net)


def test_a_view_is_read_and_edited_in_place(model: Mine, net: Net) -> None:
    for _ in range(3):
        with model.trace(X) as tracer:
            pairs = model.pairs.clone().save()
            model.pairs[:, 0] = 7
            result = tracer.result.save()
        assert_same(pairs, net(X).unflatten(-1, (2, 2)))
        assert (result[:, :2] == 7).all()
        assert_same(result[:, 2:], net(X)[:, 2:])


def test_a_copy_is_put_back_by_its_transform(model: Mine, net: Net) -> None:
    for _ in range(3):
        with model.trace(X) as tracer:
            model.copied[:, 1] = 7
            again = model.copied.clone().save()
            result = tracer.result.save()
        assert (again[:, 1] == 7).all()
        assert_same(result[:, :2], net(X)[:, :2])
        assert (result[:, 2:] == 7).all()


def test_a_copy_of_an_invokes_rows_is_put_back_into_them(model: Mine, net: Net) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.copied[:] = 7
        with tracer.invoke(-X):
            other = model.output.save()
        with tracer.invoke():
            both = model.output.save()
    assert (both[:1] == 7).all()
    assert_near(both[1:], net(-X))
    assert_same(other, both[1:])


def test_what_is_assigned_is_processed_first(model: Mine, net: Net) -> None:
    with model.trace(X):
        doubled = model.doubled.save()
        model.doubled = X * 4
        hidden = model.first.output.save()
    assert_same(doubled, X * 2)
    assert_same(hidden, net.first(X * 2))


def test_a_value_of_ones_own_is_read_and_written(model: Mine, net: Net) -> None:
    for _ in range(3):
        with model.run(X) as tracer:
            value = model.telemetry.save()
            result = tracer.result.save()
        assert_same(value, X + 1)
        assert_same(result, net(net(X + 1) + 1))
    with model.run(X) as tracer:
        model.telemetry = torch.zeros(1, 4)
        first = model.first.output.save()
    assert_same(first, net.first(torch.zeros(1, 4)))
    with torch.no_grad():
        # outside of a block nothing changes
        assert_same(model.run(X), net(net(X + 1) + 1))


def test_each_time_it_is_provided_is_a_visit(model: Mine, net: Net) -> None:
    with model.run(X, times=3) as tracer:
        values = [].save()
        for _ in tracer.iter[:3]:
            values.append(model.telemetry)
    once = net(X + 1)
    assert_same(values[0], X + 1)
    assert_same(values[1], once + 1)
    assert_same(values[2], net(once + 1) + 1)


def test_invokes_have_their_rows_of_it(model: Mine) -> None:
    with model.trace(fn="run") as tracer:
        with tracer.invoke(X):
            first = model.telemetry.save()
        with tracer.invoke(-X):
            model.telemetry[:] = 0
        with tracer.invoke():
            both = model.telemetry.save()
    assert_same(first, X + 1)
    assert_same(both, torch.cat([X + 1, torch.zeros(1, 4)]))


def test_what_does_not_come_is_an_error(model: Mine) -> None:
    with pytest.raises(NotRunningError, match="telemetry"):
        model.telemetry
    with pytest.raises(NotCalledError, match="none did in this run"):
        with model.trace(X):
            model.telemetry.save()
    with pytest.raises((OutOfOrderError, NotCalledError)):
        with model.run(X, times=1):
            model.output
            model.telemetry.save()
    with pytest.raises(TypeError, match="give the eproperty a key of its own"):
        Mine.pairs.provide(model, X)
