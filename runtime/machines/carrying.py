"""The stacks that carried calls run on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any

from greenlet import greenlet

# An error of torch's own records the C stack that it is raised on: its 64 innermost frames. Where
# a greenlet begins there is nothing below that an unwinder could follow, and one that goes past
# that place reads what is not there and ends the process. So the stack begins with more frames
# than torch looks at. Each level adds three: `next`, the step of `map`, and the call of it.
_LEVELS = 24


def new_carrier(function: Callable[..., Any]) -> greenlet:
    """Make a greenlet that runs a function, and that may be switched away from inside of it.

    It is given the function's arguments by its first switch, and it returns what the function
    returns.
    """

    def begin(*args: Any) -> Any:
        step = map(call, (partial(function, *args),))
        for _ in range(_LEVELS):
            step = map(next, (step,))
        return next(step)

    return greenlet(begin)
