"""The stacks that carried calls run on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any

from greenlet import greenlet

# A torch error records the 64 innermost frames of the C stack. Below the first frame of a greenlet
# there is nothing to unwind: an unwinder that goes past it reads invalid memory and ends the
# process. So the stack begins with more frames than torch looks at. Each level adds three: `next`,
# the step of `map`, and the call of it.
_LEVELS = 24


def new_carrier(function: Callable[..., Any]) -> greenlet:
    """Make a greenlet that runs a function, from inside of which it may be switched away.

    Its first switch passes the function's arguments; it returns the function's result.
    """

    def begin(*args: Any) -> Any:
        step = map(call, (partial(function, *args),))
        for _ in range(_LEVELS):
            step = map(next, (step,))
        return next(step)

    return greenlet(begin)
