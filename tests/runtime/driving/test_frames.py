"""A guard of the hot path that does not time: Python frames per access, and per entry.

A frame is counted for each Python function that is called and each generator that is resumed, the
block itself included. What the module's own call takes is left out, by the difference between a
block that has an access more and one that has not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.blocks.import_hook import compile_module


class Plain(nn.Module):
    """Calls its layers one by one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.ones(1, 2)
COUNT = 8


def frames_of(run: Callable[[], Any]) -> int:
    """Count the Python frames that a call enters, once it has been made before."""
    for _ in range(3):
        run()
    count = 0

    def note(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def bare(count: int) -> int:
    module = Plain(count)
    return frames_of(lambda: module(X))


def read(count: int) -> int:
    model = NNsight(Plain(count))

    def run() -> None:
        with model.trace(X):
            for i in range(count):
                hidden = model.layers[i].output

    return frames_of(run)


def read_and_written(count: int) -> int:
    model = NNsight(Plain(count))

    def run() -> None:
        with model.trace(X):
            for i in range(count):
                model.layers[i].output = model.layers[i].output * 2

    return frames_of(run)


@pytest.mark.parametrize(
    ("form", "most", "indices"), [(read, 1, 1), (read_and_written, 2, 2)], ids=["read", "edit"]
)
def test_an_access_takes_few_frames(form: Callable[[int], int], most: int, indices: int) -> None:
    own = bare(2 * COUNT) - bare(COUNT)
    taken = form(2 * COUNT) - form(COUNT) - own
    # Each `model.layers[i]` is one frame of the envoy's, however the access is served. The others
    # are that of the tap, of the loop that serves and of the block, less the two of torch's own
    # between a call and `forward`, which the tap leaves out.
    assert taken <= (most + indices) * COUNT, f"{taken / COUNT} frames for each"


def test_an_entry_takes_few_frames() -> None:
    text = "def user(model, x):\n    with model.trace(x):\n        pass\n"
    names: dict[str, Any] = {}
    exec(compile_module(text, "<an empty block>"), names)
    model = NNsight(Plain(COUNT))
    taken = frames_of(lambda: names["user"](model, X)) - bare(COUNT)
    # The block itself is entered twice, for its end. The others are what makes the tracer, the way
    # to the run, whether all is as it was, the machine, and its run. The long way takes 36.
    assert taken <= 15
