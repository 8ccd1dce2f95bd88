"""Tracebacks that show the user's frames.

An exception in a block propagates through the machine, the driver, a tap and the whole forward of
the model, none of which the user wrote. Its traceback keeps the frames from the block's own one
on, without those of this package; the model's frames are kept if the model raised.

An error raised outside of a block, as by `model.layers[99]`, propagates through frames of this
package, and Python adds each to its traceback. `towards_user` sets a trace function on the user's
frame, which removes them when the error arrives.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=BaseException)

_ROOTS = tuple(
    str(root)
    for folder in (Path(__file__).parent, Path(__file__).resolve().parent)
    for root in (folder, folder.parent / "transforms", folder.parent / "nnsight_dsl")
)

_CAN_WAIT = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
"""Flags of code whose frames may be suspended; clearing such a frame would close it."""

_show_all = False


def show_all_frames(show: bool) -> None:
    """Keep the frames of this package in tracebacks, or remove them again."""
    global _show_all
    _show_all = show


def is_ours(code: CodeType) -> bool:
    """Return whether a code object belongs to this package."""
    return code.co_filename.startswith(_ROOTS)


def users_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package."""
    kept: list[TracebackType] = []
    while traceback is not None:
        if not is_ours(traceback.tb_frame.f_code):
            kept.append(traceback)
        traceback = traceback.tb_next
    result: TracebackType | None = None
    for entry in reversed(kept):
        result = TracebackType(result, entry.tb_frame, entry.tb_lasti, line_of(entry))
    return result


def line_of(entry: TracebackType) -> int:
    """Return the line of a traceback's first entry.

    A function's first instructions have none, and an interrupt may arrive there.
    """
    return entry.tb_lineno or entry.tb_frame.f_code.co_firstlineno


def clean(error: BaseException) -> None:
    """Remove the frames of this package from an exception, its causes and its contexts."""
    if _show_all:
        return
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = users_traceback(current.__traceback__)
        todo += [current.__cause__, current.__context__]


def released(error: BaseException) -> BaseException:
    """Return an exception of a finished run, with the frames of this package in it cleared.

    A traceback keeps its frames alive, and each frame its caller. So the frames of a failed model
    keep those of the driver, the taps and the block's entry, where the exception itself is a
    local: a reference cycle that holds the activations of all these frames.
    """
    if _show_all:
        return error
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        traceback = current.__traceback__
        while traceback is not None:
            frame: FrameType | None = traceback.tb_frame
            while frame is not None and id(frame) not in seen:
                seen.add(id(frame))
                if is_ours(frame.f_code) and not frame.f_code.co_flags & _CAN_WAIT:
                    try:
                        frame.clear()
                    except RuntimeError:
                        # the frame is still running, and so are its callers
                        break
                frame = frame.f_back
            traceback = traceback.tb_next
        todo += [current.__cause__, current.__context__]
    return error


def traceback_at(filename: str, line: int, function: str) -> TracebackType | None:
    """Make a traceback whose only entry is a line of the user's file."""
    code = compile("\n" * (line - 1) + "raise ValueError", filename, "exec")
    code = code.replace(co_name=function, co_qualname=function)
    try:
        exec(code, {})
    except ValueError as error:
        return users_traceback(error.__traceback__)
    return None


def original(error: BaseException) -> BaseException:
    """Return the StopIteration behind Python's RuntimeError, or the error itself."""
    cause = error.__cause__
    is_turned = isinstance(error, RuntimeError) and isinstance(cause, StopIteration)
    return cause if is_turned and cause is not None else error


def towards_user(error: _Error, *, may_be_asked: bool = False) -> _Error:
    """Let an error reach the user's frame without frames of this package; return it.

    Under a debugger or a tracer, which owns the trace function, the frames stay.

    Args:
        error: the error about to be raised, outside of a block.
        may_be_asked: whether the user may have called `hasattr`, which swallows the error.
    """
    if _show_all or sys.gettrace() is not None:
        return error
    found: FrameType | None = sys._getframe(1)
    while found is not None and is_ours(found.f_code):
        found = found.f_back
    if found is None or (may_be_asked and "CALL" in _instruction_at(found)):
        return error
    frame = found
    before = frame.f_trace

    def arrive(current: FrameType, event: str, argument: Any) -> None:
        if current is not frame:
            return
        sys.settrace(None)
        frame.f_trace = before
        if event == "exception" and argument[1] is error:
            argument[2].tb_next = users_traceback(argument[2].tb_next)

    frame.f_trace = arrive
    sys.settrace(_trace_nothing)
    return error


def _trace_nothing(frame: FrameType, event: str, argument: Any) -> None:
    """Trace no new frame; the user's frame has its own trace function."""


def _instruction_at(frame: FrameType) -> str:
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def raising_at_user(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let the errors of a function reach its caller without frames of this package."""

    @functools.wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            clean(error)
            towards_user(error)
            raise

    return call
