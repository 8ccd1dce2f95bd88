"""Entering a block by a `with` statement, and raising its errors at the user's line.

`with` looks up `__exit__` on the type before it calls `__enter__`. Here it finds a property, which
lowers the block and returns an exit function for that block: one whose code object names the
user's file and the line of the `with` statement. An exception that leaves the block passes
through that function, so the traceback shows it as a line of the user's.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from nnsight_dsl.runtime.errors import InternalError, LoopOver, RunAborted, RunEnded
from nnsight_dsl.runtime.tracebacks import clean, released
from nnsight_dsl.transforms.errors import BlockUseError
from nnsight_dsl.transforms.frame_names import (
    forget_snapshot,
    names_around,
    namespace_of,
    set_names,
)
from nnsight_dsl.transforms.live_frames import BodySkip, bind_target, find_block, lead_debugger_on
from nnsight_dsl.transforms.parsing import one_at_a_time
from nnsight_dsl.transforms.program import Program

from . import support

_EXIT = """
def exit(self, kind, error, traceback):
    if not self._has_skipped(error):
        return False
    failure = self._leave(error)
    if failure is None:
        return True
    context = failure.__context__
    try:
        raise self._released(failure)
    finally:
        failure.__context__ = context
        # its traceback has this frame, which must not refer back to it
        del failure, context, error, traceback
"""

_exits: dict[tuple[int, int], tuple[CodeType, Callable[..., bool]]] = {}
"""By code object and offset of the instruction; the entry keeps the code object alive."""


def _exit_at(frame: FrameType) -> Callable[..., bool]:
    found = _exits.get((id(frame.f_code), frame.f_lasti)) or _new_exit(frame)
    return found[1]


@one_at_a_time
def _new_exit(frame: FrameType) -> tuple[CodeType, Callable[..., bool]]:
    code, line = frame.f_code, frame.f_lineno
    tree = ast.parse(_EXIT)
    # the whole of the line, of which a traceback marks no part
    text = linecache.getline(code.co_filename, line).rstrip().encode()
    start, end = len(text) - len(text.lstrip()), len(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr, ast.arg)):
            node.lineno = node.end_lineno = line
            node.col_offset, node.end_col_offset = start, end
    namespace: dict[str, Any] = {}
    exec(compile(tree, code.co_filename, "exec"), namespace)
    function: FunctionType = namespace["exit"]
    function.__code__ = function.__code__.replace(co_name=code.co_name, co_qualname=code.co_name)
    found = _exits[id(code), frame.f_lasti] = (code, function)
    return found


class OuterNames(dict[str, Any]):
    """The values of a frame's names at entry, and a way to ask for their current values."""

    def __init__(self, frame: FrameType) -> None:
        super().__init__(namespace_of(frame))
        self._frame = frame

    def now(self, name: str) -> Any:
        """Return the current value of a name in the frame.

        Raises:
            NameError: it is not bound.
        """
        namespace = namespace_of(self._frame)
        if name not in namespace:
            raise NameError(f"name {name!r} is not bound in the enclosing function", name=name)
        return namespace[name]


class Block:
    """Base of the objects that open a block: `model.trace(...)`, `tracer.invoke(...)`."""

    _frame: FrameType | None
    _program: Program
    _refusal: Exception | None = BlockUseError(
        "a block was entered otherwise than by a 'with' statement; write 'with "
        "model.trace(...):' with the block below it"
    )
    _skip: BodySkip
    _short_way: Callable[..., tuple[dict[str, Any], BaseException | None] | None] | None = None
    """Fast path that runs a block if it can, and otherwise returns None."""

    @property
    def __exit__(self) -> Callable[..., bool]:
        frame = sys._getframe(1)
        self._refusal = None
        try:
            self._program = find_block(frame)
        except Exception as error:
            # raised when the block is left, so that it comes from the user's line
            self._refusal = error
        return MethodType(_exit_at(frame), self)

    def __enter__(self) -> Any:
        frame = sys._getframe(1)
        if isinstance(self._refusal, BlockUseError):
            raise self._refusal
        self._skip = BodySkip(frame)
        self._frame = frame
        value = self._bound_value()
        try:
            self._skip.begin()
        except BaseException:
            # an interrupt: the statement is not entered, and so its exit is not called
            self._skip.end(None)
            raise
        return value

    def _bound_value(self) -> Any:
        """Return the value of the `with` statement's `as` target."""
        return self

    def _has_skipped(self, error: BaseException | None) -> bool:
        return self._skip.end(error)

    _released = staticmethod(released)

    def _leave(self, skipped: BaseException | None) -> BaseException | None:
        """Run the block; return the error to raise in the user's frame.

        Args:
            skipped: the exception that was raised to skip the body.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            raise InternalError("a block was left that was not entered")
        if self._refusal is not None:
            _put_contexts_right(self._refusal, skipped)
            return self._refusal.with_traceback(None)
        bind_target(frame, self._skip.offset, self._bound_value())
        left, failure = self._finished(self._program, frame.f_globals, names_around(frame), frame)
        set_names(frame, left)
        del left
        forget_snapshot(frame)
        lead_debugger_on(frame, self._program)
        if failure is not None:
            _put_contexts_right(failure, skipped)
        return failure

    def _finished(
        self,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        frame: FrameType | None = None,
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Run the block; return the names that leave it, and the error to raise."""
        if self._short_way is not None:
            found = self._short_way(self, program, user_globals, names)
            if found is not None:
                return found
        left: dict[str, Any] = {}
        if program.looks_outside and frame is not None:
            names = OuterNames(frame)
        try:
            left, failure = self._run(program, user_globals, names)
        except BaseException as error:
            failure = error
        if failure is not None:
            clean(failure)
        return left, failure

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Run the block; return the names that leave it, and the error that it raised."""
        raise NotImplementedError


support.blocks = (Block,)


def _put_contexts_right(failure: BaseException, skipped: BaseException | None) -> None:
    """Give a failure the contexts that it would have if the body had run in place.

    The control flow of this package is removed: the skipping of the body, the run's end. An
    exception that the user's function is handling becomes the context of the first error.
    """
    seen = {id(failure)}
    current = failure
    while True:
        context = current.__context__
        while context is skipped or isinstance(context, (LoopOver, RunAborted, RunEnded)):
            if context is None:
                break
            context = context.__context__
        current.__context__ = context
        following = current.__cause__ or context
        if following is None or id(following) in seen:
            break
        seen.add(id(following))
        current = following
    handled = None if skipped is None else skipped.__context__
    if handled is not None and current.__context__ is None and id(handled) not in seen:
        current.__context__ = handled
