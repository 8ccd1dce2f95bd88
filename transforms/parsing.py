"""A global lock around parsing and compiling syntax trees.

CPython 3.11 and 3.12 keep the recursion depth of the conversion between syntax trees and Python
objects in one counter for all threads. A garbage collection during the conversion lets another
thread run, and if that thread parses too, the first one fails with "SystemError: AST constructor
recursion depth mismatch". So all code of this package that parses or compiles trees at run time
must take the lock below, by decorating or wrapping the function that does it:

    tree = one_at_a_time(ast.parse)(text)

The lock is reentrant. It cannot stop a user's thread from parsing at the same time.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

_lock = RLock()


def one_at_a_time(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """Wrap a function so that one thread at a time runs any of the functions wrapped like this."""

    @wraps(function)
    def guarded(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        with _lock:
            return function(*args, **kwargs)

    return guarded


@one_at_a_time
def parsed_statements(text: str, line: int = 1, filename: str = "<unknown>") -> list[ast.stmt]:
    """Parse statements of a file by themselves, however far they are indented there.

    Args:
        text: their lines.
        line: the number of the first of these lines in the file, which the tree has, too.
        filename: the file, for the error.

    Raises:
        SyntaxError: the text begins in the middle of a line, or is not valid.
    """
    is_indented = text[:1] in (" ", "\t")
    tree = ast.parse(f"if 1:\n{text}" if is_indented else text, filename)
    ast.increment_lineno(tree, line - (2 if is_indented else 1))
    outer = tree.body[0]
    return outer.body if is_indented and isinstance(outer, ast.If) else tree.body
