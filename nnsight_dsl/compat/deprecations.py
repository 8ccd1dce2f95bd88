"""What nnsight has deprecated: the category of its warnings, and the names of 0.6."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

from nnsight_dsl.runtime.tracebacks import is_ours


class NNsightDeprecationWarning(FutureWarning):
    """A program uses something that nnsight 0.8 has deprecated."""


def warn_of_deprecated(message: str) -> None:
    """Warn that the user's line has something deprecated."""
    warn_user(message, NNsightDeprecationWarning)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the user's line, however many frames of this package are below it."""
    level, frame = 1, sys._getframe()
    while is_ours(frame.f_code) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _deprecated(name: str, instead: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def deprecated(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"nnsight.{name} is deprecated; {instead}", DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return deprecated


def _apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _removed(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        "this construct of older versions is gone; write plain Python in the block: 'if', 'for' "
        "and functions work as everywhere"
    )


OF_06 = types.SimpleNamespace(
    list=_deprecated("list", "write list()", list),
    dict=_deprecated("dict", "write dict()", dict),
    apply=_deprecated("apply", "call the function itself", _apply),
    cond=_deprecated("cond", "write an 'if' statement", _removed),
    local=_deprecated("local", "code runs locally as it is", _removed),
    trace=_deprecated("trace", "decorate with nnsight_dsl.intervene", _removed),
)
"""Names at the top of 0.6 that warn when they are called; 0.8 has removed them."""
