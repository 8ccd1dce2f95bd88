"""The proof that the names in a block run no user code, which the block's text alone cannot give.

`model.lm_head.weight` is looked up by this package and by PyTorch; `model.probe`, if the class of
the model defines a property of that name, runs the property's code, which may read `.output`. So
each path that a block names is followed here without running anything, up to the class that
defines the attribute found. Classes of PyTorch, transformers and this package are known; a
subclass of theirs is known as far as it defines nothing that the block uses.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.locations import Place, children_of
from nnsight_dsl.runtime.values.known_types import (
    NOT_THERE,
    class_attribute,
    is_computed_by_user,
    is_known,
    is_of_library,
    stored,
)
from nnsight_dsl.transforms.names import MISSING
from nnsight_dsl.transforms.source.accesses import PathItem
from nnsight_dsl.transforms.source.plain import ATTRIBUTES, PORT_GETTER, Path, Plain

_CONTAINERS = (list, tuple, dict, set, frozenset)
_MOST_ITEMS = 64
"""The most items of a container that are inspected; with more, a block is not plain."""

_PLAIN_MODULES = frozenset({"torch", "math", "operator", "itertools", "numpy"})
_CALLING = frozenset(
    "attrgetter methodcaller call starmap getattr setattr eval exec vectorize".split()
)
"""Functions that access any attribute, or call any function, that they are given."""

_HARMLESS = frozenset(
    "__init__ __new__ __module__ __qualname__ __doc__ __annotations__ __dict__ __weakref__ "
    "__slots__ __orig_bases__ __parameters__ __init_subclass__ __class_getitem__ __firstlineno__ "
    "__static_attributes__ __abstractmethods__ _abc_impl".split()
)


def is_plain(plain: Plain, values: Mapping[str, Any]) -> bool:
    """True if a block is plain, given the values of its names.

    Args:
        plain: the conditions found in its text.
        values: the values of its names.
    """
    return (
        all(is_plain_value(values[name]) for name in plain.roots)
        and all(is_plain_path(values[path[0]], path) for path in plain.paths)
        and not (plain.named and _are_users(plain.named, values.values()))
    )


def is_plain_value(value: Any) -> bool:
    """True if operators, subscripts and iteration of a value run no user code."""
    kind = type(value)
    if kind in _CONTAINERS:
        # an object in a container may define operators and properties
        items = [*value, *value.values()] if kind is dict else value
        return len(items) <= _MOST_ITEMS and all(map(_is_plain_item, items))
    if _is_plain_item(value):
        return True
    if kind is types.ModuleType:
        return value.__name__.partition(".")[0] in _PLAIN_MODULES
    if value is MISSING:
        # reading the name is an error, which runs no user code
        return True
    return kind is type and value.__module__ == "builtins"


def is_plain_path(start: Any, path: Path) -> bool:
    """True if following a path, and calling its target, runs no user code.

    Args:
        start: the value at which the path starts.
        path: attributes and indices, and whether their target is called.
    """
    _, items, is_called = path
    if start is MISSING:
        return True
    if isinstance(start, Place):
        return _is_plain_below(start, items, is_called)
    if type(start) is types.ModuleType:
        return _is_plain_in_module(start, items)
    return _is_known_there(start, items, is_called)


def own_names(kind: type) -> frozenset[str] | None:
    """Return names that a user's subclass adds; None if it redefines any, or adds an operator."""
    if is_of_library(kind):
        return frozenset()
    ours: set[str] = set()
    found: set[str] = set()
    for cls in kind.__mro__:
        names = cls.__dict__.keys()
        (ours if is_of_library(cls) else found).update(names)
    found -= _HARMLESS
    if found & ours or any(name.startswith("__") and name.endswith("__") for name in found):
        return None
    return frozenset(found)


def _is_plain_item(value: Any) -> bool:
    if isinstance(value, Place):
        return own_names(type(value)) is not None
    return is_known(value) or (
        # but none that calls its arguments, as `getattr` does
        type(value) is types.BuiltinFunctionType
        and type(value.__self__) is types.ModuleType
        and value.__name__ not in _CALLING
    )


def _is_plain_below(start: Place, items: Sequence[PathItem], is_called: bool) -> bool:
    """Follow a path from a place; a computed index leads to all items."""
    places = [start]
    for number, item in enumerate(items):
        rest = items[number + 1 :]
        following: list[Place] = []
        for place in places:
            names = own_names(type(place))
            if names is None or item in names or item == PORT_GETTER:
                return False
            if not isinstance(item, str):
                following.extend(place._places_below())
                continue
            if class_attribute(type(place), item) is not NOT_THERE:
                # defined by this package, as `model.device` and `tracer.cache`
                if not ATTRIBUTES.issuperset(rest):
                    return False
                continue
            found = place.__dict__.get(item, NOT_THERE)
            module = place._module
            if found is NOT_THERE and isinstance(module, nn.Module):
                below = place._descend(item)
                if below is None and is_called and not _calls_only_libraries(place):
                    return False
                found = _attribute(module, item) if below is None else below
            if isinstance(found, Place):
                # the module may have been replaced
                found._refresh()
                following.append(found)
            elif not _is_known_there(found, rest, is_called):
                return False
        places = following
        if not places:
            return True
    return not is_called or all(_calls_only_libraries(place) for place in places)


def _attribute(module: nn.Module, name: str) -> Any:
    """Return an attribute of a module without running any code.

    Returns:
        The value; None if a library computes it, and `NOT_THERE`, which is not of a known type,
        if a user's class computes it.
    """
    if is_computed_by_user(module, name):
        return NOT_THERE
    own = stored(module, name)
    there = class_attribute(type(module), name)
    if own is not NOT_THERE and not hasattr(type(there), "__set__"):
        return own
    return None if there is NOT_THERE or hasattr(type(there), "__get__") else there


def _is_known_there(value: Any, items: Sequence[PathItem], is_called: bool) -> bool:
    """True if the target of a path from a plain value is known."""
    kind = type(value)
    if kind in _CONTAINERS:
        return is_known(value) and ATTRIBUTES.issuperset(_names_in(items))
    if isinstance(value, (nn.Module, Place)) or not is_known(value):
        return False
    if kind.__module__.partition(".")[0] in ("transformers", "tokenizers"):
        for number, item in enumerate(items):
            if isinstance(item, str) and not is_called:
                return _is_known_there(getattr(value, item, None), items[number + 1 :], False)
        return True
    return ATTRIBUTES.issuperset(_names_in(items))


def _names_in(items: Sequence[PathItem]) -> Iterator[str]:
    return (item for item in items if isinstance(item, str))


def _is_plain_in_module(module: types.ModuleType, items: Sequence[PathItem]) -> bool:
    """Follow a path in a Python module: its target must be defined in a known module."""
    if module.__name__.partition(".")[0] not in _PLAIN_MODULES:
        return False
    found: Any = module
    for number, item in enumerate(items):
        if not isinstance(item, str) or item in _CALLING:
            return False
        found = getattr(found, item, None)
        if found is torch.ops:
            return items[number + 1 :][:1] in (("aten",), ("prims",))
        if not isinstance(found, types.ModuleType):
            # an attribute of a constant, or a function of a class
            rest = _names_in(items[number + 1 :])
            return _is_of_plain_module(found) and not _CALLING.intersection(rest)
    return True


def _is_of_plain_module(value: Any) -> bool:
    if is_known(value):
        return True
    defined_in = getattr(value, "__module__", None) or type(value).__module__
    first = defined_in.partition(".")[0] if isinstance(defined_in, str) else ""
    return first in _PLAIN_MODULES or first in ("builtins", "_operator")


def _calls_only_libraries(place: Place) -> bool:
    """True if a call of a place's module runs only code of known libraries."""
    if not isinstance(place._module, nn.Module):
        return False
    for module in place._module.modules():
        if not is_of_library(type(module)) or "forward" in module.__dict__:
            return False
        if module is not place._module and (module._forward_hooks or module._forward_pre_hooks):
            return False
    return True


def _are_users(names: frozenset[str], values: Iterable[Any]) -> bool:
    """True if users' classes define some names on places, or modules, that values lead to."""
    roots = {}
    for value in values:
        inside = value if type(value) in _CONTAINERS else (value,)
        for one in inside.values() if isinstance(inside, dict) else inside:
            if isinstance(one, Place):
                if not names.isdisjoint(own_names(type(one)) or ()):
                    return True
                root = one._root or one
                roots[id(root)] = root
    return any(
        _is_users(names, module)
        for root in roots.values()
        if isinstance(root._module, nn.Module)
        for module in root._module.modules()
    )


def _is_users(names: frozenset[str], module: nn.Module) -> bool:
    if not (names.isdisjoint(module.__dict__) and names.isdisjoint(children_of(module))):
        return True
    kind = type(module)
    return not is_of_library(kind) and any(
        not (is_of_library(cls) or names.isdisjoint(cls.__dict__)) for cls in kind.__mro__
    )
