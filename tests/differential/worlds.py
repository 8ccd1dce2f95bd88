"""The models that random programs run on, and what happens to them between two entries.

A world has two models of one class, one of which is the one that is traced now, and makes the
inputs. Two worlds of one kind are equal: one is for the package, the other for plain hooks. So an
event does the same to each of them, and nothing that one run leaves behind can help the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import torch
from torch import nn

from tests import models
from tests.language.random_blocks import Pair

WIDTH = 3


class Scaled(nn.Module):
    """A layer with arguments by name, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("ones", torch.ones(WIDTH))

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        return self.inner(x) * scale + self.ones


class Twice(nn.Module):
    """A layer that calls the one inside twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(self.inner(x))
        return out


class Widened(nn.Module):
    """A layer whose output is one row, expanded over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0, keepdim=True).expand(len(x), -1)


class Noisy(nn.Module):
    """A layer that differs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) + 1
        return out


class Residual(nn.Module):
    """A layer with operations to look into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(x)
        cut = torch.relu(hidden)
        return cut + x


class Probe(nn.Module):
    """Stands where an operation has been done, so that a hook sees what came of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


OPERATIONS = ("self_inner_0", "hidden", "torch_relu_0", "cut", "add_0", "return_0")
"""The operations of `Residual`, in their order."""


class ProbedResidual(Residual):
    """The same layer for plain hooks: each operation is followed by a module."""

    def __init__(self) -> None:
        super().__init__()
        for name in OPERATIONS:
            self.add_module(f"after_{name}", Probe())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        after = self._modules
        hidden = after["after_hidden"](after["after_self_inner_0"](self.inner(x)))
        cut = after["after_cut"](after["after_torch_relu_0"](torch.relu(hidden)))
        return after["after_return_0"](after["after_add_0"](cut + x))


_KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "nested": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
    "pair": Pair,
    "scaled": Scaled,
    "twice": Twice,
    "identity": nn.Identity,
    "inplace": lambda: nn.ReLU(inplace=True),
    "noisy": Noisy,
    "widened": Widened,
    "residual": Residual,
}
_PROBED = {**_KINDS, "residual": ProbedResidual}
KINDS = tuple(_KINDS)


class Stack(nn.Module):
    """Layers of several kinds, one after the other."""

    def __init__(self, kinds: Sequence[str], seed: int, *, is_probed: bool) -> None:
        super().__init__()
        made = _PROBED if is_probed else _KINDS
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList([made[kind]() for kind in kinds])
            self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, scale=2.0) if isinstance(layer, Scaled) else layer(x)
            if isinstance(x, tuple):
                x = x[0]
        out: torch.Tensor = self.head(x)
        return out


FIRST = {"stack": "layers.0", "gpt2": "transformer.h.0", "llama": "model.layers.0"}
"""Path of the first layer."""


def with_accessors(base: Any, family: str) -> Any:
    """Make a subclass of a wrapper, with properties and methods that touch model values."""

    class Accessors(base):  # type: ignore[misc]
        count = 0

        def _first(self) -> Any:
            place = self
            for name in FIRST[family].split("."):
                place = place[int(name)] if name.isdigit() else getattr(place, name)
            return place

        @property
        def first(self) -> Any:
            return self._first().output

        @first.setter
        def first(self, value: Any) -> None:
            self.count += 1
            self._first().output = value

        def scaled(self, factor: float = 2.0) -> Any:
            found = self.first
            return (found[0] if isinstance(found, tuple) else found) * factor

    return Accessors


LANGUAGE = {"gpt2": models.GPT2, "llama": models.LLAMA}
PROMPTS = ("the cat sat on", "a red bird flew", "one two three four")


@cache
def _language_model(family: str) -> Any:
    return LANGUAGE[family].new()


class World:
    """Two models of one class, and inputs for them.

    Args:
        family: the kind of model.
        kinds: kinds of the layers of a stack.
        is_probed: whether operations are followed by modules, for plain hooks.
    """

    def __init__(self, family: str, kinds: Sequence[str], *, is_probed: bool) -> None:
        self.family = family
        self.is_language = family in LANGUAGE
        if self.is_language:
            self.nets = [copy.deepcopy(_language_model(family)) for _ in range(2)]
            with torch.no_grad():
                for one in self.nets[1].parameters():
                    one.mul_(0.9)
        else:
            self.nets = [Stack(kinds, seed, is_probed=is_probed).eval() for seed in (1, 2)]
        self.number = 0
        self.dtype = torch.float32
        self.n_rows = 2

    @property
    def net(self) -> Any:
        return self.nets[self.number]

    @property
    def layers(self) -> Any:
        if not self.is_language:
            return self.net.layers
        return self.net.get_submodule(LANGUAGE[self.family].layers)

    def x(self) -> Any:
        """Make the input of a trace."""
        if self.is_language:
            return PROMPTS[0]
        numbers = torch.linspace(-1, 1, self.n_rows * WIDTH, dtype=self.dtype)
        return numbers.reshape(self.n_rows, WIDTH)

    def inner(self) -> nn.Module:
        """Return a module in the middle of the model, which all inputs pass."""
        return self.layers[1]  # type: ignore[no-any-return]


Event = Callable[[World], AbstractContextManager[Any]]


def _last(found: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(found, tuple):
        return (change(found[0]), *found[1:])
    return change(found)


@contextmanager
def _set(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute, and leave everything as it was afterwards."""
    missing = object()
    before = vars(target).get(name, missing)
    setattr(target, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(target, name)
        else:
            setattr(target, name, before)


def _forward_of_instance(world: World) -> AbstractContextManager[Any]:
    layer = world.inner()
    forward = layer.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        return _last(forward(*args, **kwargs), lambda x: x * 2)

    return _set(layer, "forward", changed)


def _forward_of_class(world: World) -> AbstractContextManager[Any]:
    cls: Any = type(world.inner())
    forward = cls.forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _last(forward(self, *args, **kwargs), lambda x: x + 1)

    return _set(cls, "forward", changed)


observing: list[Any] = []
"""The runs of plain hooks that are under way.

A call that is patched shows them what it is given and what it returns, since hooks see neither.
"""


def _patched(call: Any, kind: type) -> Any:
    def changed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = observing[-1] if observing else None
        if run is not None:
            args, kwargs = run.before(self, args, kwargs) or (args, kwargs)
            run.observed.append(self)
        out = call(self, *args, **kwargs)
        if self.__class__ is kind:
            out = _last(out, lambda x: x * 2)
        if run is None:
            return out
        run.observed.pop()
        return run.after(self, args, out)

    return changed


def _call_of_class(world: World) -> AbstractContextManager[Any]:
    cls: Any = type(world.inner())
    return _set(cls, "__call__", _patched(cls.__call__, cls))


def _call_of_all(world: World) -> AbstractContextManager[Any]:
    call = _patched(nn.Module.__call__, type(world.inner()))
    return _set(nn.Module, "__call__", call)


@contextmanager
def _class(world: World) -> Iterator[None]:
    layer = world.inner()
    cls: Any = type(layer)

    class Other(cls):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return _last(super().forward(*args, **kwargs), lambda x: x - 1)

    layer.__class__ = Other
    try:
        yield
    finally:
        layer.__class__ = cls


@contextmanager
def _dtype(world: World) -> Iterator[None]:
    world.net.double()
    world.dtype = torch.float64
    try:
        yield
    finally:
        world.net.float()
        world.dtype = torch.float32


@contextmanager
def _rows(world: World) -> Iterator[None]:
    world.n_rows = 3
    try:
        yield
    finally:
        world.n_rows = 2


@contextmanager
def _other_model(world: World) -> Iterator[None]:
    world.number = 1
    try:
        yield
    finally:
        world.number = 0


@contextmanager
def _exchanged(world: World) -> Iterator[None]:
    layers = world.layers
    before, layers[1] = layers[1], copy.deepcopy(layers[0])
    try:
        yield
    finally:
        layers[1] = before


@contextmanager
def _exchanged_before(world: World) -> Iterator[None]:
    layers = world.layers
    before = layers[0]
    layers[0] = nn.Identity()
    layers[0] = before
    yield


@contextmanager
def _deleted(world: World) -> Iterator[None]:
    last = len(world.layers) - 1
    before = world.layers[last]
    del world.layers[last]
    try:
        yield
    finally:
        world.layers.append(before)


@contextmanager
def _training(world: World) -> Iterator[None]:
    world.net.train()
    try:
        yield
    finally:
        world.net.eval()


@contextmanager
def _frozen(world: World) -> Iterator[None]:
    world.net.requires_grad_(False)
    try:
        yield
    finally:
        world.net.requires_grad_(True)


def _raising(error: type[BaseException]) -> Event:
    def event(world: World) -> AbstractContextManager[Any]:
        def fail(*_: object) -> None:
            raise error("a hook")

        return world.layers[1].register_forward_pre_hook(fail)  # type: ignore[no-any-return]

    return event


def _hooked(world: World) -> AbstractContextManager[Any]:
    hook = lambda m, args, out: _last(out, lambda x: x * 3)  # noqa: E731
    return world.layers[0].register_forward_hook(hook)  # type: ignore[no-any-return]


def _hooked_before(world: World) -> AbstractContextManager[Any]:
    hook = lambda m, args: (args[0] * 3, *args[1:])  # noqa: E731
    return world.layers[1].register_forward_pre_hook(hook)  # type: ignore[no-any-return]


def _hooked_everywhere(world: World) -> AbstractContextManager[Any]:
    kind = type(world.inner())

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        return _last(out, lambda x: x + 1) if module.__class__ is kind else None

    return nn.modules.module.register_module_forward_hook(hook)  # type: ignore[no-any-return]


@contextmanager
def _called_before(world: World) -> Iterator[None]:
    # a model that some kinds of layers cannot follow each other in fails here, too
    with torch.no_grad(), suppress(RuntimeError):
        if world.is_language:
            world.net(**models.encoded(PROMPTS[1]))
        else:
            world.net(world.x())
    yield


EVENTS: dict[str, Event] = {
    "nothing": lambda world: nullcontext(),
    "a hook": _hooked,
    "a hook before": _hooked_before,
    "a hook of all modules": _hooked_everywhere,
    "a failing hook": _raising(ZeroDivisionError),
    "an interrupt": _raising(KeyboardInterrupt),
    "forward of the instance": _forward_of_instance,
    "forward of the class": _forward_of_class,
    "call of the class": _call_of_class,
    "call of all modules": _call_of_all,
    "another class": _class,
    "another dtype": _dtype,
    "more rows": _rows,
    "another model": _other_model,
    "another layer": _exchanged,
    "a layer that was away": _exchanged_before,
    "one layer less": _deleted,
    "training": _training,
    "frozen": _frozen,
    "no autograd": lambda world: torch.no_grad(),
    "inference": lambda world: torch.inference_mode(),
    "a plain call before": _called_before,
}
