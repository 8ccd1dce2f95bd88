"""Copies of wrappers: by `copy`, `deepcopy` and `pickle`, and those that edits are made on.

A copy has the wrapper's module, its options and the attributes that a subclass has added. It
leaves out the envoys below, which are made on demand, and the caches about its runs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.values.known_types import is_of_library

_MADE_ANEW = frozenset(
    {"_at", "_below", "_family", "_fits", "_known_options", "_linted", "_all_modules", "_root"}
)


@dataclass(frozen=True, slots=True)
class _At:
    """Placeholder of an envoy below the wrapper, by path."""

    path: str


def state_of(root: Place) -> dict[str, Any]:
    """Return the state from which `restore` makes a copy of a wrapper."""
    own = root.__dict__
    state = {
        name: value
        for name, value in own.items()
        if name not in _MADE_ANEW
        and (name not in own["_below"] or own["_below"][name] is not value)
    }
    for name in _slots_of(type(root)):
        if hasattr(root, name):
            state[name] = getattr(root, name)
    for name, value in state.items():
        if getattr(value, "_root", None) is root:
            state[name] = _At(_below_root(value))
    return state


def restore(root: Place, state: Mapping[str, Any], **others: Any) -> None:
    """Set the state of a new wrapper."""
    slots = _slots_of(type(root))
    own = root.__dict__
    own.update({name: value for name, value in state.items() if name not in slots})
    own.update(_root=root, _below={}, _at={}, **others)
    for name, value in state.items():
        # envoys are found only after the module has been set
        found = at(root, value.path) if isinstance(value, _At) else value
        if name in slots:
            object.__setattr__(root, name, found)
        elif isinstance(value, _At):
            own[name] = found


def at(root: Any, path: str) -> Any:
    """Return the envoy at a path; pickles refer to this function by name."""
    return root._envoy_at(path)


def reduced(envoy: Place) -> tuple[Any, ...]:
    """Return the `__reduce_ex__` value of an envoy, for `copy` and `pickle`."""
    root = envoy._root
    if envoy is not root:
        return at, (root, _below_root(envoy))
    return _made, (type(root),), state_of(root)


def deep_copied(envoy: Place, memo: dict[int, Any]) -> Any:
    """Return the envoy at the same place of a wrapper of a copy of the module."""
    root = envoy._root
    if envoy is not root:
        return at(copy.deepcopy(root, memo), _below_root(envoy))
    new: Any = _made(type(root))
    memo[id(root)] = new
    # the module comes first: the places that other values name are looked up in it
    state = state_of(root)
    new.__setstate__({name: copy.deepcopy(value, memo) for name, value in state.items()})
    return new


def _below_root(envoy: Place) -> str:
    """Return the path of an envoy from its root, which may be a part of a model."""
    root = envoy._root
    above = "" if root is None else root._path
    return envoy._path.removeprefix(above).removeprefix(".")


def _made(kind: Any) -> Any:
    return kind.__new__(kind)


def _slots_of(kind: type) -> list[str]:
    """Return the slots of a user's classes."""
    found: list[str] = []
    for cls in kind.__mro__:
        slots = cls.__dict__.get("__slots__", ()) if not is_of_library(cls) else ()
        found.extend([slots] if isinstance(slots, str) else slots)
    return [name for name in found if name not in ("__dict__", "__weakref__")]
