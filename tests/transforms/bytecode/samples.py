"""Taps for tests: they note what they are told, and can change it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from nnsight_dsl.transforms.bytecode.functions import with_code
from nnsight_dsl.transforms.bytecode.operations import operations_of
from nnsight_dsl.transforms.bytecode.taps import tapped_code


class Noting:
    """Passes everything on and notes it; replaces a value or arguments where it is told to."""

    def __init__(self, name: str, log: list[Any], change: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.log = log
        self.change = dict(change or {})

    def before(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.log.append((self.name, args, kwargs))
        if "skip" in self.change:
            return lambda: self.change["skip"]
        return functools.partial(function, *self.change.get("args", args), **kwargs)

    def after(self, value: Any) -> Any:
        self.log.append((self.name, value))
        return self.change.get("value", value)


def tapped(
    function: Callable[..., Any],
    names: Any = None,
    *,
    around: bool = False,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[FunctionType, list[Any]]:
    """Tap operations of a function, all if none are named; return the copy and its log."""
    assert isinstance(function, FunctionType)
    known = operations_of(function.__code__)
    names = list(known if names is None else names)
    log: list[Any] = []
    taps = {name: Noting(name, log, (changes or {}).get(name)) for name in names}
    asked = frozenset(names if around else ())
    return with_code(function, tapped_code(function.__code__, taps, asked)), log
