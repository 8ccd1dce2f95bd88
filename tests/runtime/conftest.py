"""A small stack of layers, for tests that need no language model."""

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight

LAYERS = 6


class Stack(nn.Module):
    """Layers one after the other; each value is freed when the next one is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(LAYERS)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return Stack()


@pytest.fixture
def model(module: nn.Module) -> NNsight:
    return NNsight(module)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def outputs(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What each layer returns in a plain run."""
    found: list[torch.Tensor] = []
    value = x
    for layer in module.layers:
        value = layer(value)
        found.append(value)
    return found
