"""Wrapped functions: find the innermost function of a callable, and replace it in a copy.

A library may decorate a module's forward:

    @functools.wraps(forward)
    def checked(self, *args, **kwargs):     # a decorator of some library
        return forward(self, *args, **kwargs)

A user who asks for the operations of the forward means the innermost function, not the wrapper.
`innermost` follows `__wrapped__`, bound methods, partials and objects whose class has a
`__call__`. `rebuilt` copies all wrappers around another innermost function. The originals are not
changed, because other instances of the class share them.

A wrapper that does not hold the wrapped function in a closure cell cannot be copied; it counts as
the innermost function itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any


def innermost(function: Any) -> FunctionType | None:
    """Return the innermost Python function of a callable, None if there is none."""
    found = function
    while True:
        below = _below(found)
        if below is None:
            return found if isinstance(found, FunctionType) else None
        found = below


def rebuilt(function: Any, make: Callable[[FunctionType], FunctionType]) -> Any:
    """Copy a callable with another innermost function.

    Args:
        function: a callable for which `innermost` finds a function.
        make: takes the innermost function and returns its replacement.
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
    """Copy a function with other code, which must have the same free variables."""
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
    """Return the callable directly inside a wrapper, None if `function` is not a wrapper."""
    if isinstance(function, MethodType):
        return function.__func__
    if isinstance(function, functools.partial):
        return function.func
    if isinstance(function, FunctionType):
        wrapped = getattr(function, "__wrapped__", None)
        cells = function.__closure__ or ()
        # a wrapper without the wrapped function in a cell cannot be copied around another one
        if wrapped is not None and any(_content(cell) is wrapped for cell in cells):
            return wrapped
        return None
    return _call_of(function)


def _call_of(value: Any) -> FunctionType | None:
    """Return the `__call__` of an object's class, if it is a Python function.

    None for a class, whose call makes an object, and for an object with a `forward`, such as a
    module: its operations are those of the forward.
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
        # the cell is empty: its variable is not assigned yet
        return None
