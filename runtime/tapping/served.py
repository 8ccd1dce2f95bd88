"""Values that code around a model serves itself, beside those of the modules.

    value = provided(place, value)      # where the value is made: it may come back changed

A place of this kind belongs to a module and has a key. It is tapped like a module: each value is a
visit, counted by steps in a generation.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import advanced

from .tapped_class import taps_now
from .taps import Tap


class _Served:
    """What stands at such a place, where others have a module."""


class ServedPlace(Place):
    """The place of a value that is served by `provided`."""

    # it outlives wrappers, and is of the model of whoever names it
    _parent = None
    _root = None

    def __init__(self, path: str) -> None:
        self._module = _Served()
        self._path = path

    def _absence(self) -> str:
        return (
            "it is served where code of the model's class calls provide() of its eproperty, and "
            "none did in this run; open the block by the method that does"
        )


_places: WeakKeyDictionary[nn.Module, dict[str, ServedPlace]] = WeakKeyDictionary()


def served_place(owner: Place, key: str) -> ServedPlace:
    """Return the place of a key at a module, the same for all wrappers of it."""
    known = _places.setdefault(owner._module, {})
    if key not in known:
        known[key] = ServedPlace(f"{owner._path}.{key}" if owner._path else key)
    return known[key]


class ServedTap(Tap):
    """The tap of such a place."""

    def install(self) -> None:
        """Be found by `provided`."""
        taps_now[id(self.place._module)] = self

    def remove(self) -> None:
        """Be found no longer."""
        taps_now.pop(id(self.place._module), None)

    def served(self, value: Any) -> Any:
        """Offer a value; return the one to go on with."""
        outer, self.index = self.index, self.begin()
        try:
            return self._offered(value)
        finally:
            self.index = outer


def provided(place: ServedPlace, value: Any) -> Any:
    """Serve a value to the blocks of the run that this thread makes.

    Returns:
        The value, or what a block has replaced it by; the value itself out of a run.
    """
    tap = taps_now.get(id(place._module))
    if (
        not isinstance(tap, ServedTap)
        or tap.driver.thread != get_ident()
        or advanced() is not None
        or tap.driver.is_in_backward
    ):
        return value
    return tap.served(value)
