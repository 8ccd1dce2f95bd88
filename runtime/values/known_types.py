"""Values whose operations run no code that could ask for a model value.

A machine without a stack of its own must not meet anything else: an operator, a property, a method
or an iterator of a user's class may read `.output`, and could not wait for it. A subclass may
define any of them, so only the exact type of a value proves something, and where that is a
container, the types of its items.

Known are Python's own types, and what PyTorch, transformers, tokenizers, NumPy and this package
define. An `nn.Module` is never known: its hooks and its children may be anything.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.locations import Place

_LIBRARIES = frozenset({"torch", "transformers", "tokenizers", "vllm", "numpy", "nnsight_dsl"})
_TRUSTED = _LIBRARIES | {"builtins", "collections", "abc", "typing", "enum", "dataclasses", "math"}
_CONTAINERS = frozenset({list, tuple, set, frozenset})
_DEEPEST = 8
"""How many containers inside each other are looked into; deeper ones are not known."""

_known: set[type] = {
    torch.Tensor, nn.Parameter, torch.dtype, torch.device, torch.Size, torch.layout,
    bool, int, float, complex, str, bytes, range, slice, type(None), type(...),
}  # fmt: skip
"""Types that have been found to be known; those of users are not kept here."""

_library_types: set[type] = {*_known, *_CONTAINERS, dict, object}


def is_of_library(kind: type) -> bool:
    """True if a class and all classes it derives from are Python's or a known library's."""
    if kind in _library_types:
        return True
    for cls in kind.__mro__:
        name = cls.__module__
        if not isinstance(name, str) or name.partition(".")[0] not in _TRUSTED:
            return False
    _library_types.add(kind)
    return True


def is_known(value: Any, depth: int = 0) -> bool:
    """True if nothing that can be done with a value runs code of a user's class.

    Args:
        value: the value.
        depth: how many containers it was found in.
    """
    kind = type(value)
    if kind in _known:
        return True
    if depth > _DEEPEST:
        return False
    if kind in _CONTAINERS:
        return all(is_known(one, depth + 1) for one in value)
    if kind is dict or kind is OrderedDict:
        return all(is_known(one, depth + 1) for pair in value.items() for one in pair)
    if kind.__module__ in _PYTHON or not is_of_library(kind) or issubclass(kind, _NEVER):
        return False
    # the fields of a library's container are values like others: those of a ModelOutput, say
    if issubclass(kind, dict):
        return all(is_known(one, depth + 1) for pair in dict.items(value) for one in pair)
    if issubclass(kind, tuple(_CONTAINERS)):
        return all(is_known(one, depth + 1) for one in value)
    first = kind.__module__.partition(".")[0]
    if first == "numpy":
        # an array of objects has their operators
        dtype = getattr(value, "dtype", None)
        return dtype is not None and not dtype.hasobject
    if first == "torch" and not issubclass(kind, torch.Tensor):
        # others run what they were given: a loader of data, an optimizer
        return kind is torch.Generator or kind is torch.memory_format
    return True


def is_computed_by_user(module: nn.Module, name: str) -> bool:
    """True if code of a user's class runs when an attribute of a module is looked up."""
    kind = type(module)
    if not _is_of_library(kind, "__getattribute__"):
        return True
    there = class_attribute(kind, name)
    if there is NOT_THERE:
        return stored(module, name) is NOT_THERE and not _is_of_library(kind, "__getattr__")
    if not hasattr(type(there), "__set__") and stored(module, name) is not NOT_THERE:
        return False
    return hasattr(type(there), "__get__") and not _is_of_library(kind, name)


def stored(module: nn.Module, name: str) -> Any:
    """Return an attribute that a module itself has, `NOT_THERE` where it has none."""
    for own in (module.__dict__, module._parameters, module._buffers):
        if isinstance(own, dict) and name in own:
            return own[name]
    return NOT_THERE


def class_attribute(kind: type, name: str) -> Any:
    """Return what a class or one of its bases defines under a name, without binding it."""
    for cls in kind.__mro__:
        if name in cls.__dict__:
            return cls.__dict__[name]
    return NOT_THERE


def _is_of_library(kind: type, name: str) -> bool:
    """True if a library's class is the first that defines a name, or none does."""
    for cls in kind.__mro__:
        if name in cls.__dict__:
            return is_of_library(cls)
    return True


NOT_THERE: Any = object()

_PYTHON = frozenset({"builtins", "collections", "typing", "abc"})
"""Modules whose other classes run what they are given: `map`, `defaultdict`."""

_NEVER = (nn.Module, Place, type, types.ModuleType)
