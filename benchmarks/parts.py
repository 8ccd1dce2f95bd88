"""What the benchmarks share: a model whose overhead shows, and timing in turns."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

LAYERS = 12


class Layer(nn.Module):
    """A small MLP block, fast enough for the overhead to show."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.relu(self.up(hidden)))


class Stack(nn.Module):
    """A residual stack of such blocks."""

    def __init__(self, layers: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def once(function: Callable[[], object]) -> float:
    """Return the microseconds that one call takes."""
    begin = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - begin) / 1_000


def compare(functions: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Time the functions in turns."""
    for function in functions:
        for _ in range(5):
            function()
    gc.collect()
    gc.disable()
    try:
        times = [[once(function) for function in functions] for _ in range(rounds)]
    finally:
        gc.enable()
    return [list(column) for column in zip(*times, strict=True)]


def machine() -> str:
    """Name what the figures were measured with."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
