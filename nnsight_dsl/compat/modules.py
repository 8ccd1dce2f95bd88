"""Small working parts of nnsight that programs build on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class WrapperModule(nn.Module):
    """A module that returns its argument, so that a value gets a place in a model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments: one by itself, several as a tuple."""
        given = (*args, *kwargs.values())
        return given[0] if len(given) == 1 else given


def apply(
    data: Any, fn: Callable[[Any], Any], cls: type | tuple[type, ...], inplace: bool = False
) -> Any:
    """Replace the objects of a class in nested lists, tuples, dicts and slices.

    Args:
        data: the nested value.
        fn: makes the new object of each.
        cls: the class, or several.
        inplace: put the new objects into the lists and dicts that are there.

    Returns:
        The value with the new objects.

    Example:
        >>> apply([1, {"two": 2}], lambda number: number * 10, int)
        [10, {'two': 20}]
    """
    if isinstance(data, cls):
        return fn(data)
    if isinstance(data, list):
        items = [apply(one, fn, cls, inplace) for one in data]
        if inplace:
            data[:] = items
            return data
        return type(data)(items)
    if isinstance(data, tuple):
        found = [apply(one, fn, cls, inplace) for one in data]
        return type(data)(*found) if hasattr(data, "_fields") else type(data)(found)
    if isinstance(data, dict):
        pairs = {key: apply(one, fn, cls, inplace) for key, one in data.items()}
        if inplace:
            data.update(pairs)
            return data
        return pairs
    if isinstance(data, slice):
        return slice(*(apply(one, fn, cls, inplace) for one in (data.start, data.stop, data.step)))
    return data
