"""Envoys as programs written for nnsight expect them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.ports import PORTS
from nnsight_dsl.runtime.locations import children_of
from nnsight_dsl.transforms.requests import MOVED

_NAMES = frozenset({*PORTS, "source", "skip", "next", "iter"})
"""Names of submodules that are reached as `E_<name>`, too."""

_Include = Callable[[Envoy], bool] | None


class Listed(Envoy):
    """An envoy that lists envoys, where the module's own methods list modules."""

    def modules(self, include_fn: _Include = None, names: bool = False) -> list[Any]:
        """List the envoys below and this one, children before their parent.

        Args:
            include_fn: takes an envoy, and returns whether it is listed.
            names: list pairs of path and envoy.

        Returns:
            The envoys, or pairs of path and envoy. A module at several places is listed once.
        """
        found: dict[int, Envoy] = {}
        self._collect(found)
        kept = [one for one in found.values() if include_fn is None or include_fn(one)]
        return [(one.path, one) for one in kept] if names else kept

    def named_modules(self, include_fn: _Include = None) -> list[tuple[str, Envoy]]:
        """List pairs of path and envoy, as `modules(names=True)`.

        Args:
            include_fn: takes an envoy, and returns whether it is listed.

        Returns:
            The pairs; paths begin with the root: `"model.transformer.h.0"`.
        """
        return self.modules(include_fn, names=True)

    def _collect(self, found: dict[int, Envoy]) -> None:
        for child in self._places_below():
            if id(child._module) not in found:
                child._collect(found)
        found.setdefault(id(self._module), self)

    @property
    def _children(self) -> list[Envoy]:
        """The envoys directly below, in order."""
        return list(self._places_below())


class Listed08(Listed):
    """As `Listed`, with what 0.8 has besides."""

    @property
    def device(self) -> torch.device | None:
        """Device of the first parameter, None without parameters."""
        first = next(iter(self._fresh().parameters()), None)
        return None if first is None else super().device

    def __bool__(self) -> bool:
        module = self._fresh()
        return len(module) > 0 if hasattr(type(module), "__len__") else True

    def __len__(self) -> int:
        module = self._fresh()
        if not hasattr(type(module), "__len__"):
            raise TypeError(f"object of type {type(module).__name__!r} has no len()")
        return super().__len__()

    def _aliased(self, name: str) -> Envoy | None:
        if name.startswith(MOVED) and name[len(MOVED) :] in _NAMES:
            moved = self._child(name[len(MOVED) :])
            if moved is not None:
                return moved
        return super()._aliased(name)


def warn_of_moved(root: Envoy) -> None:
    """Warn of submodules that have the name of a port, once for each place of a model."""
    for path, module in root._module.named_modules():
        for name in _NAMES.intersection(children_of(module)):
            where = f"model.{path}" if path else "model"
            warnings.warn(
                f"{where} has a submodule {name!r}, and .{name} is the value of {where} itself; "
                f"the submodule is {where}.{MOVED}{name}",
                UserWarning,
                stacklevel=3,
            )


class Envoy06(Listed):
    """An envoy below a model, for programs written for nnsight 0.6."""


class Envoy08(Listed08):
    """An envoy below a model, for programs written for nnsight 0.8."""
