"""Ports of a call: reading one from the call's values, and replacing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight_dsl.runtime.errors import NotCalledError

from .rows import describe


def port_value(value: Any, port: str) -> Any:
    """Return a port of an offered value: `(args, kwargs)` before a call, the output after it."""
    if port != "input":
        return value
    args, kwargs = value
    if args:
        return args[0]
    if kwargs:
        return next(iter(kwargs.values()))
    raise NotCalledError("this call has no arguments, so it has no input; read '.inputs'")


def with_port_value(value: Any, port: str, new: Any) -> Any:
    """Return an offered value with one port replaced."""
    if port == "output" or port == "result":
        return new
    if port == "inputs":
        args, kwargs = new
        return tuple(args), dict(kwargs)
    args, kwargs = value
    if args:
        return (new, *args[1:]), kwargs
    if kwargs:
        first = next(iter(kwargs))
        return args, {**kwargs, first: new}
    return (new,), kwargs


def with_element(container: Any, path: Sequence[Any], new: Any) -> Any:
    """Return a container with the element at an index path replaced.

    Tuples along the path are rebuilt; lists, dicts and tensors are edited in place, and then the
    container itself is returned.
    """
    key, *rest = path
    if rest:
        element = container[key]
        replaced = with_element(element, rest, new)
        if replaced is element:
            return container
        new = replaced
    if isinstance(container, Mapping) and isinstance(key, int) and hasattr(container, "to_tuple"):
        # a ModelOutput can be read by number, but is set by name only
        key = [name for name, value in container.items() if value is not None][key]
    if not isinstance(container, tuple):
        container[key] = new
        return container
    items = list(container)
    items[key] = new
    if hasattr(container, "_fields"):
        return type(container)(*items)
    # the sequence types in torch.return_types, as of torch.max, are made from an iterable
    return type(container)(items) if hasattr(container, "n_sequence_fields") else tuple(items)


def misfit(old: Any, new: Any) -> str | None:
    """Describe how a written value differs in form from the one it replaces, None if it does not.

    A difference is not an error: a model may accept another length. It is kept in case the model
    then fails.
    """
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if old.is_nested and new.is_nested:
            # strided nested tensors have no shape to compare
            return None
        if old.is_nested or new.is_nested:
            return f"{_nested(new)} tensor in place of {_nested(old)} one"
        if old.shape == new.shape and old.dtype == new.dtype and old.device == new.device:
            return None
    elif isinstance(old, (tuple, list)) and isinstance(new, type(old)):
        if len(old) == len(new):
            return next(
                (found for pair in zip(old, new, strict=True) if (found := misfit(*pair))), None
            )
        return f"{len(new)} elements in place of {len(old)}"
    elif isinstance(new, type(old)):
        return None
    return f"{describe(new)} in place of {describe(old)}"


def _nested(tensor: torch.Tensor) -> str:
    return "a nested" if tensor.is_nested else "a dense"


def without_aliasing(value: Any) -> Any:
    """Copy a container, and those in it; return anything else as it is."""
    kind = type(value)
    if kind is dict:
        return {key: without_aliasing(item) for key, item in value.items()}
    if kind in (list, tuple, set):
        return kind(without_aliasing(item) for item in value)
    return value
