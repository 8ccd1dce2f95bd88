"""Where a value can be read or written while a model runs.

A *place* is something that has ports: a module of a model (the envoy in front of it), the
generation of a language model, a run's result. `transformer.h.0` is a place, and `output` one of
its ports; together they are a *location*, `transformer.h.0.output`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

ROOT = "model"
"""Name of a model's root in paths that users see whole, as `model.transformer.h.0`."""


class Place:
    """Base of everything whose ports a program can name.

    Attributes:
        _module: the module behind the place, None for a place without one, as a run's result.
        _path: dotted path from the root, empty for the root.
        _parent: the place above, None for the root.
        _root: root of the place's model, None for a place outside of any model.
    """

    _module: Any
    _path: str
    _parent: Place | None
    _root: Place | None = None
    _names_operations: Callable[[CodeType], Mapping[str, Any]] | None = None
    """At the root of a model: its names of operations, by code; None for those of the bytecode."""
    _own_values: Sequence[Any] = ()
    """At the root: the eproperties of its class."""
    _lists_operations = False
    """At the root: True if a source iterates over operations, False if over their names."""

    def _refresh(self) -> None:
        """Look up the module at the place again, in case it was replaced."""

    def _descend(self, item: str | int) -> Place | None:
        """Return the place below by attribute name or index, None if there is none."""
        return None

    def _whole(self) -> Place:
        """Return the root of the model in which the paths of a root's places begin."""
        return self

    def _absence(self) -> str:
        """Explain why a finished run did not compute a value of this place."""
        return (
            "the module was not called in this run; it may sit in a branch that this input does "
            "not take, be called by its forward method, or not be part of the computation at all "
            "(print(model) shows the paths)"
        )

    def _splits(self) -> Mapping[int, Any]:
        """Return how values below are split over processes, by the id of the module."""
        return {}

    def _places_below(self) -> Iterator[Place]:
        """Iterate over the places directly below."""
        return iter(())


def children_of(module: Any) -> Mapping[str, Any]:
    """Return the modules directly below one, by name.

    A module compiled by TorchScript has none here: TorchScript runs them without calling modules.
    """
    found = module._modules
    return found if isinstance(found, dict) else {}


def name_of(place: Place, port: str) -> str:
    """Spell a location: `transformer.h.0.output`."""
    return f"{place._path}.{port}" if place._path else f"{ROOT}.{port}"


def ancestors(place: Place) -> Iterator[Place]:
    """Iterate over a place and all places above it, from the inside out."""
    current: Place | None = place
    while current is not None:
        yield current
        current = current._parent


def places_at(start: Place, path: Sequence[str | int | None]) -> list[Place] | None:
    """Find the places a path can lead to; None in the path matches any index.

    Returns None if the path leaves the places.
    """
    found = [start]
    for item in path:
        following: list[Place] = []
        for place in found:
            if item is None:
                following.extend(place._places_below())
            else:
                below = place._descend(item)
                if below is None:
                    return None
                following.append(below)
        found = following
    return found


def key_of(place: Place) -> int:
    """Return the key of a place's tap: a module may have several places, but has one tap."""
    return id(place if place._module is None else place._module)
