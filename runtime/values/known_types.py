"""Values whose operations run no code that could ask for a model value.

A plain machine, which has no greenlet, must meet no other values: an operator, a property, a
method or an iterator of a user's class may read `.output`, and could not wait for it. A subclass
may define any of these, so only the exact type of a value is proof, and for a container also the
types of its items.

Known are Python's own types, and those of PyTorch, transformers, tokenizers, vLLM, NumPy and this
package. An `nn.Module` is never known: its hooks and its children may be anything.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.locations import Place

_LIBRARIES = frozenset(
    {"torch", "transformers", "diffusers", "tokenizers", "vllm", "numpy", "PIL", "nnsight_dsl"}
)
_TRUSTED = _LIBRARIES | {"builtins", "collections", "abc", "typing", "enum", "dataclasses", "math"}
_CONTAINERS = frozenset({list, tuple, set, frozenset})
_DEEPEST = 8
"""Nesting depth to which containers are inspected; deeper ones are not known."""

_known: set[type] = {
    torch.Tensor, nn.Parameter, torch.dtype, torch.device, torch.Size, torch.layout,
    bool, int, float, complex, str, bytes, range, slice, type(None), type(...),
}  # fmt: skip
"""Types whose every value is known."""

_library_types: set[type] = {*_known, *_CONTAINERS, dict, object}


def is_of_library(kind: type) -> bool:
    """True if a class and all its bases are Python's or a known library's."""
    if kind in _library_types:
        return True
    for cls in kind.__mro__:
        name = cls.__module__
        if not isinstance(name, str) or name.partition(".")[0] not in _TRUSTED:
            return False
    _library_types.add(kind)
    return True


def is_known(value: Any, depth: int = 0) -> bool:
    """True if no operation on a value can run code of a user's class.

    Args:
        value: the value.
        depth: number of containers around it.
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
    # the fields of a library's container, as of a ModelOutput, may be anything
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
        # other objects call functions that they were given: a DataLoader, an optimizer
        return kind is torch.Generator or kind is torch.memory_format
    return True


def is_computed_by_user(module: nn.Module, name: str) -> bool:
    """True if looking up an attribute of a module runs code of a user's class."""
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
    """Return an attribute stored on a module itself, `NOT_THERE` if there is none."""
    for own in (module.__dict__, module._parameters, module._buffers):
        if isinstance(own, dict) and name in own:
            return own[name]
    return NOT_THERE


def class_attribute(kind: type, name: str) -> Any:
    """Return an attribute of a class or its bases, unbound; `NOT_THERE` if there is none."""
    for cls in kind.__mro__:
        if name in cls.__dict__:
            return cls.__dict__[name]
    return NOT_THERE


def _is_of_library(kind: type, name: str) -> bool:
    """True if the first class in the MRO that defines a name is a library's, or none does."""
    for cls in kind.__mro__:
        if name in cls.__dict__:
            return is_of_library(cls)
    return True


NOT_THERE: Any = object()

_PYTHON = frozenset({"builtins", "collections", "typing", "abc"})
"""Modules whose other classes call functions that they are given: `map`, `defaultdict`."""

_NEVER = (nn.Module, Place, type, types.ModuleType)
