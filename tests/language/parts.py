"""The models that the constructs run on: as blocks see them, and for the reference."""

from __future__ import annotations

import asyncio
import functools
import operator
from typing import Any

import sortedcontainers
import torch
from torch import nn
from torch.utils import _pytree as pytree

import nnsight_dsl
from nnsight_dsl import NNsight
from tests import models
from tests.language import elsewhere
from tests.language.reference import Reference

LAYERS = 6
_MODULES = (asyncio, elsewhere, functools, operator, sortedcontainers, torch)


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(LAYERS)])
            self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.head(x)
        return out


def namespace() -> dict[str, Any]:
    """Names that a construct may use: two stacks, a tiny GPT-2, an input, a log, libraries."""
    wrapped = {"model": NNsight(Stack(11)), "other": NNsight(Stack(12))}
    wrapped["gpt2"] = models.wrapped(models.GPT2)
    own = {"intervene": nnsight_dsl.intervene, "save": nnsight_dsl.save}
    return {**wrapped, **own, **_shared(), "layers": wrapped["model"].layers}


def reference_namespace() -> dict[str, Any]:
    """The same names for the same statements in plain Python."""
    model, other = Reference(Stack(11)), Reference(Stack(12))
    gpt2 = Reference(models.bare(models.GPT2), encode=models.encoded)
    wrapped = {"model": model, "other": other, "gpt2": gpt2}
    own = {"intervene": _plain_intervene, "save": lambda value: value}
    return {**wrapped, **own, **_shared(), "layers": model.layers}


def _shared() -> dict[str, Any]:
    return {
        "x": torch.linspace(-1, 1, 8).reshape(2, 4),
        "log": [],
        "run_async": asyncio.run,
        "tree_map": pytree.tree_map,
        **{module.__name__.rpartition(".")[2]: module for module in _MODULES},
    }


def _plain_intervene(function: Any) -> Any:
    function.bind = functools.partial(functools.partial, function)
    return function
