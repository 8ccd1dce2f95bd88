"""Objects that only look like places of a model mean in any block what they mean in Python."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import GradientError, NNsight
from tests.models import GPT2, LONG, wrapped

X = torch.ones(2, 3)


class Plain:
    """Has attributes of the names that places have."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self.iter = [3, 4, 5]
        self.grad = [1, 2]

    def all(self) -> list[int]:
        return [6, 7]


class Guarded:
    """Looks after its attribute itself."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self.log: list[str] = []
        self.iter = iter(range(3))
        self.grad = {0: 1}

    @property
    def output(self) -> Any:
        self.log.append("read")
        return self._output

    @output.setter
    def output(self, value: Any) -> None:
        self.log.append("write")
        if value == "bad":
            raise KeyError(value)
        self._output = value


@pytest.fixture
def model() -> NNsight:
    torch.manual_seed(0)
    return NNsight(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))


def plain(h: Any, seen: list[Any], model: NNsight) -> None:
    seen.append(h.output)
    h.output = [1, [2], {"k": 3}]
    h.output[0] = 5
    h.output[1][0] = 6
    h.output[2]["k"] += 7
    h.grad[0] = 8
    for one in h.iter:
        seen.append(one)
    seen.append([*h.output])


def in_forward(h: Any, seen: list[Any], model: NNsight) -> None:
    with model.trace(X):
        seen.append(h.output)
        h.output = [1, [2], {"k": 3}]
        h.output[0] = 5
        h.output[1][0] = 6
        h.output[2]["k"] += 7
        h.grad[0] = 8
        for one in h.iter:
            seen.append(one)
        seen.append([*h.output])


def in_backward(h: Any, seen: list[Any], model: NNsight) -> None:
    with model.trace(X):
        with model.output.sum().backward():
            seen.append(h.output)
            h.output = [1, [2], {"k": 3}]
            h.output[0] = 5
            h.output[1][0] = 6
            h.output[2]["k"] += 7
            h.grad[0] = 8
            for one in h.iter:
                seen.append(one)
            seen.append([*h.output])


def in_a_backward_of_its_own(h: Any, seen: list[Any], model: NNsight) -> None:
    with model.trace(X):
        loss = model.output.sum().save()
    with loss.backward():
        seen.append(h.output)
        h.output = [1, [2], {"k": 3}]
        h.output[0] = 5
        h.output[1][0] = 6
        h.output[2]["k"] += 7
        h.grad[0] = 8
        for one in h.iter:
            seen.append(one)
        seen.append([*h.output])


BLOCKS = [in_forward, in_backward, in_a_backward_of_its_own]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("make", [Plain, Guarded])
def test_reads_writes_elements_and_loops(
    make: Callable[[Any], Any], block: Callable[..., None], model: NNsight
) -> None:
    expected, found = make("first"), make("first")
    wanted: list[Any] = []
    seen: list[Any] = []
    plain(expected, wanted, model)
    block(found, seen, model)
    assert seen == wanted
    assert found.grad == expected.grad
    assert getattr(found, "log", None) == getattr(expected, "log", None)


def element_plain(h: Any, model: NNsight) -> None:
    h.output[0] = 5


def element_in_forward(h: Any, model: NNsight) -> None:
    with model.trace(X):
        h.output[0] = 5


def element_in_backward(h: Any, model: NNsight) -> None:
    with model.trace(X):
        with model.output.sum().backward():
            h.output[0] = 5


def element_in_a_backward_of_its_own(h: Any, model: NNsight) -> None:
    with model.trace(X):
        loss = model.output.sum().save()
    with loss.backward():
        h.output[0] = 5


ELEMENTS = [element_in_forward, element_in_backward, element_in_a_backward_of_its_own]


@pytest.mark.parametrize("block", ELEMENTS)
@pytest.mark.parametrize("value", [(1, 2), [1, 2], [], {}, "text", None, 7, b"ab"], ids=repr)
def test_an_element_is_set_as_python_does(
    value: Any, block: Callable[..., None], model: NNsight
) -> None:
    def outcome(run: Callable[..., None]) -> tuple[Any, ...]:
        h = Plain(value.copy() if isinstance(value, (list, dict)) else value)
        try:
            run(h, model)
        except Exception as error:
            return type(error), str(error), h.output
        return None, None, h.output

    assert outcome(block) == outcome(element_plain)


def test_errors_of_plain_objects_are_caught_in_a_backward_block(model: NNsight) -> None:
    h = Guarded(1)
    caught = []
    with model.trace(X):
        with model.output.sum().backward():
            try:
                h.output = "bad"
            except KeyError as error:
                caught.append(error.args)
            try:
                h.missing.output
            except AttributeError as error:
                caught.append(error.name)
    assert caught == [("bad",), "missing"]


def test_a_stop_iteration_of_a_backward_block_keeps_its_type(model: NNsight) -> None:
    with pytest.raises(StopIteration, match="over"):
        with model.trace(X):
            with model.output.sum().backward():
                raise StopIteration("over")


def test_steps_of_a_run_are_refused_in_a_backward_block() -> None:
    model = wrapped(GPT2)
    with pytest.raises(GradientError, match="has no meaning in a backward pass"):
        with model.trace(LONG) as tracer:
            with model.output.logits.sum().backward():
                for _ in tracer.iter[:]:
                    pass
