"""Envoys as programs written for nnsight use them.

    model.named_modules()          # [("model.transformer.wte", envoy), ..., ("model", model)]
    model.modules()                # the envoys alone, those below a module before the module
    layer.E_output                 # the submodule `output`, while layer.output is a value

Where `nnsight_dsl` follows PyTorch and nnsight does not, these classes follow nnsight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from nnsight_dsl.compat.deprecations import warn_user
from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.ports import PORTS
from nnsight_dsl.envoys.tree import device_of, path_of
from nnsight_dsl.runtime.locations import Place, children_of
from nnsight_dsl.transforms.requests import MOVED

_SERVED = frozenset({*PORTS, "source"})


class Walked(Envoy):
    """An envoy whose `modules()` and `named_modules()` are envoys."""

    def modules(
        self, include_fn: Callable[[Envoy], bool] | None = None, names: bool = False
    ) -> list[Any]:
        """List the envoys below this one and itself, those below one before it.

        Args:
            include_fn: keeps an envoy if it returns True.
            names: True for pairs of path and envoy.

        Returns:
            The envoys, this one last.
        """
        found = [one for one in _below_first(self) if include_fn is None or include_fn(one)]
        return [(path_of(one), one) for one in found] if names else found

    def named_modules(
        self, include_fn: Callable[[Envoy], bool] | None = None
    ) -> list[tuple[str, Envoy]]:
        """List the envoys as `modules` does, each with its path from the name of the root.

        Args:
            include_fn: keeps an envoy if it returns True.

        Returns:
            Pairs of path and envoy.
        """
        return self.modules(include_fn, names=True)


class Envoy06(Walked):
    """An envoy for programs written for nnsight 0.6."""

    _wrappers = "nnsight_dsl.compat.as_06"


class Envoy08(Walked):
    """An envoy for programs written for nnsight 0.8.

    An attribute that is set belongs to the envoy, unless the module has it or it is a module.
    """

    _wrappers = "nnsight_dsl.compat.as_08"

    @property
    def device(self) -> torch.device | None:
        """Device of the first parameter, None without one."""
        module = self._fresh()
        return None if next(module.parameters(), None) is None else device_of(module)

    def __len__(self) -> int:
        if not hasattr(type(self._fresh()), "__len__"):
            raise TypeError(f"object of type {type(self._module).__name__!r} has no len()")
        return super().__len__()

    def __bool__(self) -> bool:
        return not hasattr(type(self._fresh()), "__len__") or super().__len__() > 0

    def get(self, path: str) -> Any:
        """Return what a path leads to; a port at its end is the value.

        Args:
            path: as for envoys of `nnsight_dsl`.

        Returns:
            The envoy, attribute or value.

        Raises:
            PathError: it leads nowhere.
        """
        above, _, last = path.rpartition(".")
        place = super().get(above) if last in PORTS else None
        return getattr(place, last) if isinstance(place, Place) else super().get(path)

    def _aliased(self, name: str) -> Envoy | None:
        served = served_name(name)
        return self._child(served) if served != name else super()._aliased(name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        module = own.get("_module")
        is_modules = isinstance(value, (Envoy, nn.Module)) or name in PORTS
        if module is None or is_modules or hasattr(type(self), name) or hasattr(module, name):
            super().__setattr__(name, value)
        else:
            own[name] = value


def served_name(name: str) -> str:
    """Return the name of the submodule behind `E_output` and its like; other names as they are."""
    inner = name.removeprefix(MOVED)
    return inner if inner in _SERVED else name


def without_escapes(rename: Any) -> Any:
    """Return `rename=` with the names that submodules have in the module."""
    return {
        ".".join(map(served_name, key.split("."))) if isinstance(key, str) else key: names
        for key, names in (rename or {}).items()
    }


def warn_of_served_names(root: Envoy) -> None:
    """Warn of each submodule that is named as a port, once for its path."""
    for path, module in root._module.named_modules():
        for name in children_of(module):
            if name in _SERVED:
                where = path_of(root._envoy_at(path))
                warn_user(
                    f"{where} has a submodule named {name!r}, as is a value of every module; the "
                    f"submodule is .{MOVED}{name} here, and .{name} stays the value",
                    UserWarning,
                )


def _below_first(envoy: Envoy) -> Iterator[Envoy]:
    seen: set[int] = set()

    def walk(one: Any) -> Iterator[Envoy]:
        if id(one._module) in seen:
            return
        seen.add(id(one._module))
        for below in one._places_below():
            yield from walk(below)
        yield one

    return walk(envoy)
