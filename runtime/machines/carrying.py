"""The stacks that programs and the calls they carry run on."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from functools import partial
from operator import call
from typing import Any

from greenlet import getcurrent, greenlet

from nnsight_dsl.transforms.program import Running
from nnsight_dsl.transforms.requests import Request

from .ambient import Ambient

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


class Stack:
    """The greenlets of one machine: its program's, and those of the calls that it carries.

    Attributes:
        ambient: the state of torch that the block has set.
        home: the greenlet that advances the machine, None while it is not advanced.
    """

    __slots__ = ("_calls", "_carrier", "ambient", "home")

    def __init__(self) -> None:
        self.ambient = Ambient()
        self.home: greenlet | None = None
        self._calls: list[greenlet] = []
        self._carrier: greenlet | None = None

    @property
    def has_calls(self) -> bool:
        """True while a carried call waits."""
        return bool(self._calls)

    def add_call(self, function: Callable[..., Any], context: Context) -> None:
        """Carry a call of a function; `resume` gives it its arguments and gets its result."""
        carrier = new_carrier(function)
        carrier.gr_context = context
        self._calls.append(carrier)

    def resume(
        self, running: Running, context: Context, is_error: bool, args: tuple[Any, ...]
    ) -> Request:
        """Resume the innermost carried call, or the program, until the next request.

        Args:
            running: the program.
            context: the context that it runs in.
            is_error: True to raise, False to answer.
            args: the answer, the error, or the arguments of a call that begins.

        Returns:
            The next request. The greenlet that made it waits as it is.
        """
        self.home = getcurrent()
        try:
            while self._calls:
                carrier = self._calls[-1]
                try:
                    result = carrier.throw(*args) if is_error else carrier.switch(*args)
                except BaseException as error:
                    if carrier:
                        # from outside: the call still waits
                        raise
                    self._calls.pop()
                    # an error of the call is raised at the user's line that asks for the value
                    is_error, args = True, (error,)
                    continue
                if carrier:
                    request: Request = result
                    return request
                self._calls.pop()
                is_error, args = False, (result,)
            return self._resume_program(running, context, is_error, args)
        finally:
            self.home = None

    def _resume_program(
        self, running: Running, context: Context, is_error: bool, args: tuple[Any, ...]
    ) -> Request:
        # one that was made and not begun, as an interrupt leaves it, is false too
        if not self._carrier:
            self._carrier = new_carrier(running.throw if is_error else running.send)
            self._carrier.gr_context = context
            is_error = False
        carrier = self._carrier
        try:
            request: Request = carrier.throw(*args) if is_error else carrier.switch(*args)
        finally:
            if not carrier:
                self._carrier = None
        return request
