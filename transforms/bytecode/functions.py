"""Functions around functions: finding the one whose operations a user means, and exchanging it.

    @functools.wraps(forward)
    def checked(self, *args, **kwargs):     # a decorator of some library
        return forward(self, *args, **kwargs)

What the user sees as the forward is the innermost function, not the decorator's. `innermost`
follows `__wrapped__`, bound methods, partials and objects whose class has a `__call__`; `rebuilt`
returns a copy of all that is around that function, with another function in its place. Nothing of
the original is changed: other instances of a class go on with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any


def innermost(function: Any) -> FunctionType | None:
    """Return the Python function at the heart of a callable, None where there is none."""
    found = function
    while True:
        below = _below(found)
        if below is None:
            return found if isinstance(found, FunctionType) else None
        found = below


def rebuilt(function: Any, make: Callable[[FunctionType], FunctionType]) -> Any:
    """Copy a callable with another function at its heart.

    Args:
        function: one for which `innermost` finds a function.
        make: is given the function at the heart, and returns the one to put in its place.
    """
    below = _below(function)
    if below is None:
        return make(function)
    inner = rebuilt(below, make)
    if isinstance(function, MethodType):
        return MethodType(inner, function.__self__)
    if isinstance(function, functools.partial):
        return functools.partial(inner, *function.args, **function.keywords)
    if not isinstance(function, FunctionType):
        return MethodType(inner, function)
    copy = with_closure(
        function,
        tuple(
            CellType(inner) if _content(cell) is below else cell
            for cell in function.__closure__ or ()
        ),
    )
    copy.__wrapped__ = inner  # type: ignore[attr-defined]
    return copy


def with_code(function: FunctionType, code: CodeType) -> FunctionType:
    """Copy a function with other code, which has the same free names."""
    return _copied(function, code, function.__closure__)


def with_closure(function: FunctionType, closure: tuple[CellType, ...]) -> FunctionType:
    """Copy a function with other cells."""
    return _copied(function, function.__code__, closure)


def _copied(
    function: FunctionType, code: CodeType, closure: tuple[CellType, ...] | None
) -> FunctionType:
    copy = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = function.__annotations__
    copy.__qualname__ = function.__qualname__
    copy.__module__ = function.__module__
    copy.__doc__ = function.__doc__
    copy.__dict__.update(function.__dict__)
    return copy


def _below(function: Any) -> Any:
    """Return what a callable is only a shell around, None where it is none."""
    if isinstance(function, MethodType):
        return function.__func__
    if isinstance(function, functools.partial):
        return function.func
    if isinstance(function, FunctionType):
        wrapped = getattr(function, "__wrapped__", None)
        cells = function.__closure__ or ()
        # a shell that does not hold what it wraps in a cell cannot be copied around another
        if wrapped is not None and any(_content(cell) is wrapped for cell in cells):
            return wrapped
        return None
    return _call_of(function)


def _call_of(value: Any) -> FunctionType | None:
    """Return the function that the class of an object has as its `__call__`.

    None for a class, whose call makes an object, and for what has a `forward`: the operations of a
    module are in that.
    """
    cls = type(value)
    if isinstance(value, type) or hasattr(cls, "forward"):
        return None
    found = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    return found if isinstance(found, FunctionType) else None


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # not assigned yet
        return None
