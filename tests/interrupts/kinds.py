"""The kinds of runs that are interrupted: models, inputs, and the functions of `runs.py`."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnsight_dsl import LanguageModel, NNsight
from nnsight_dsl.blocks.import_hook import compile_module
from tests.models import LONG, new_gpt2, tokenizer

_FILE = Path(__file__).with_name("runs.py")


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Checkpointed(nn.Module):
    """Layers that the backward pass computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self._inner, x, use_reentrant=False)

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Part(nn.Module):
    """A forward with operations in it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x)
        gate = torch.sigmoid(hidden)
        return x + functional.gelu(helper(hidden) * gate)


def helper(value: torch.Tensor) -> torch.Tensor:
    """A function with operations of its own."""
    return value - value.mean()


class Net(nn.Module):
    """Two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Part()
        self.second = Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Encoder(nn.TransformerEncoder):
    """An encoder of torch's, which has a fast path."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        super().__init__(layer, 1, enable_nested_tensor=False)


def _x() -> torch.Tensor:
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def _row() -> torch.Tensor:
    return torch.linspace(-1, 1, 4).reshape(1, 4)


def _wide() -> torch.Tensor:
    return torch.linspace(-1, 1, 24).reshape(1, 3, 8)


def _language(module: nn.Module) -> LanguageModel:
    return LanguageModel(module, tokenizer=tokenizer())


_Made = tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], Callable[[], Any]]
_STACK: _Made = lambda: Stack().eval(), NNsight, _x
_ROW: _Made = lambda: Stack().eval(), NNsight, _row
_GPT2: _Made = new_gpt2, _language, lambda: LONG

KINDS: Mapping[str, _Made] = {
    "one_block": _STACK,
    "invokes": _GPT2,
    "carried": _STACK,
    "generation": _GPT2,
    "backward": _STACK,
    "backward_of_two": _STACK,
    "session": _STACK,
    "edit": _STACK,
    "scan": _STACK,
    "validated": _STACK,
    "stopping": _STACK,
    "planned": _STACK,
    "swept": _ROW,
    "swept_in_training": (lambda: Stack().train(), NNsight, _row),
    "operations": (lambda: Net().eval(), NNsight, _x),
    "fast_layers": (lambda: Encoder().eval().requires_grad_(False), NNsight, _wide),
    "captured": _GPT2,
    "cached": _GPT2,
    "checkpointed": (lambda: Checkpointed().eval(), NNsight, _x),
    "skipped": _STACK,
}


class World:
    """A model, its wrapper and its input, and what a run of one kind does with them.

    Args:
        name: the kind.
        is_lowered: whether the blocks are lowered beforehand, and not from the live frame.
    """

    def __init__(self, name: str, *, is_lowered: bool) -> None:
        make, self._wrap, make_input = KINDS[name]
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.module = make()
        self._input = make_input()
        self.model = self._wrap(self.module)
        self._function = _functions(is_lowered)[name]

    def rewrap(self) -> None:
        """Wrap the model anew, so that the next run is the first of its wrapper."""
        self.model = self._wrap(self.module)

    def run(self) -> Any:
        """Run once; return what the user keeps."""
        self.module.zero_grad()
        return self._function(self.model, self._input)


_compiled: dict[bool, dict[str, Any]] = {}


def _functions(is_lowered: bool) -> dict[str, Any]:
    found = _compiled.get(is_lowered)
    if found is None:
        text = _FILE.read_text()
        name = str(_FILE) if is_lowered else f"{_FILE}.script"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        code = compile_module(text, name) if is_lowered else compile(text, name, "exec")
        found = _compiled[is_lowered] = {"__name__": f"tests.interrupts.runs_{is_lowered}"}
        exec(code, found)
    return found


def leaves(value: Any) -> Iterator[Any]:
    """Iterate over what is in a result."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one)
    else:
        yield value
