"""Runs after which activations were left for the garbage collector, each as small as it gets."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.errors import WriteShapeError


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def model() -> NNsight:
    return NNsight(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


def test_a_saved_value_is_freed_with_its_name_on_every_python(model: NNsight) -> None:
    with model.trace(torch.ones(1, 3)):
        h = model[0].output.save()
    held = weakref.ref(h)
    del h
    assert held() is None


def test_a_value_of_a_block_that_raised_is_freed_with_the_exception(model: NNsight) -> None:
    held = []
    try:
        with model.trace(torch.ones(1, 3)):
            h = model[0].output * 2
            held.append(weakref.ref(h))
            raise KeyError
    except KeyError:
        pass
    assert held[0]() is None


def test_a_value_of_a_model_that_failed_is_freed_with_the_exception() -> None:
    held = []

    class Noting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held.append(weakref.ref(x))
            return super().forward(x)

    model = NNsight(nn.Sequential(nn.Linear(3, 3), Noting(3, 3)))
    try:
        with model.trace(torch.ones(1, 3)):
            model[0].output = torch.ones(1, 5)
    except WriteShapeError:
        pass
    assert [one() for one in held] == [None]
