"""One parse at a time.

Python 3.11 and 3.12 count how deep they are in turning a syntax tree into objects, or objects into
a tree, in one counter for all threads. A garbage collection in the middle lets another thread run,
and if that one parses, too, the first fails with "SystemError: AST constructor recursion depth
mismatch". Whatever of this package parses or compiles trees at run time takes the lock below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

_lock = RLock()


def one_at_a_time(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """Let no two threads be in functions that are decorated with this."""

    @wraps(function)
    def guarded(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        with _lock:
            return function(*args, **kwargs)

    return guarded
