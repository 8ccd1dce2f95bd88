"""Blocks of live frames: find the text, skip the body, hand the names back.

In a plain script a block is met when Python enters its `with` statement. Three things are done
to the frame that stands there:

- `find_block` finds the statement in the text that the running code was compiled from (see
  `texts.py`), and lowers it; the program is kept by code object and instruction, so that a second
  entry costs a dictionary lookup.
- `BodySkip` keeps the body from running where it stands: a trace function is set, which raises
  an error at the instruction after the entry, the one that would bind the `as` target. It is
  the last one that only the `with` statement's own handler covers (a body may begin with `try`),
  and that handler swallows the exception. `bind_target` binds the target in its place.
- `set_names` (see `frame_names.py`) rebinds names of the frame after the run.
"""

from __future__ import annotations

import ast
import struct
import sys
import threading
from collections.abc import Callable
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import BlockNotFoundError, BlockUseError, InternalError
from .frame_names import local_names, names_around, namespace_of, set_names, unbind_hidden
from .parsing import one_at_a_time
from .same_code import is_entry

if TYPE_CHECKING:
    from .program import Program
    from .texts import FoundStatement

_Entry: TypeAlias = "tuple[CodeType, Program, ast.expr | None]"

_programs: dict[tuple[int, int], _Entry] = {}
"""By identity of the code object and offset of the instruction; the entry keeps the code alive."""


BodySkipped: type[Exception] = struct.error
"""Raised in place of the body of a block; seen by the `with` statement's own exit alone."""

_raising: Callable[..., Any] = struct.Struct("").pack
"""A trace function that raises, for it is given three arguments and takes none.

Before Python 3.13 a frame's names are copied into a dictionary before a trace function is called,
and all of them are copied back behind it. A function in Python would give other threads time to
bind a name of the frame meanwhile, as a closure does by `nonlocal`, and that binding would be
lost. Nothing in Python runs while this one is called.
"""


def find_block(frame: FrameType) -> Program:
    """Return the program of the `with` statement that a frame is just entering.

    Raises:
        BlockUseError: the frame is not at a `with` statement.
        BlockNotFoundError: the source text is nowhere to be found.
        UnsupportedSyntaxError: the block cannot be lowered.
    """
    return _entry(frame)[1]


def _entry(frame: FrameType) -> _Entry:
    return _programs.get((id(frame.f_code), frame.f_lasti)) or _new_entry(frame)


@one_at_a_time
def _new_entry(frame: FrameType) -> _Entry:
    key = (id(frame.f_code), frame.f_lasti)
    entry = _programs.get(key)
    if entry is None:
        found = _find_statement(frame)
        # libcst is imported where a block is lowered, and only there
        from .source.pipeline import lower_block

        program = lower_block(found.node, found.item, _surroundings(frame, found))
        target = found.node.items[found.item].optional_vars
        entry = _programs[key] = (frame.f_code, program, target)
    return entry


def _find_statement(frame: FrameType) -> FoundStatement:
    from .texts import find_statement, has_text

    code = frame.f_code
    if not is_entry(code, frame.f_lasti):
        raise BlockUseError(
            f"line {frame.f_lineno} of {code.co_filename!r} enters a block otherwise than by a "
            "'with' statement; write 'with model.trace(...):' with the block below it"
        )
    found = find_statement(frame)
    if found is not None:
        return found
    if has_text(code.co_filename):
        raise BlockNotFoundError(
            f"the block at line {frame.f_lineno} of {code.co_filename!r} was compiled from another "
            "text than stands there now; if the file was edited after its import, reload the "
            "module or start the program again, and if the text was made in the program, give "
            "each text a file name of its own and register it with linecache before it runs"
        )
    raise BlockNotFoundError(
        f"the source of {code.co_filename!r} is nowhere to be found, so the block at line "
        f"{frame.f_lineno} cannot be lowered; write it to a file, or register its text with "
        "linecache before it runs"
    )


def _surroundings(frame: FrameType, found: FoundStatement) -> Any:
    from .asserts import is_rewritten_by_pytest
    from .source.scopes import rebound_beside
    from .source.surroundings import Surroundings, future_flags

    code = frame.f_code
    is_function = bool(code.co_flags & CO_OPTIMIZED)
    known = local_names(code)
    if not is_function and namespace_of(frame) is not frame.f_globals:
        # a class body or exec: any name may be local, and what is not is looked up at the start
        known = frozenset(one.id for one in ast.walk(found.node) if isinstance(one, ast.Name))
    return Surroundings(
        filename=code.co_filename,
        lines=found.lines,
        name=code.co_name,
        locals=known,
        is_function=is_function,
        class_name=_class_of(found.enclosing),
        first_argument=code.co_varnames[0] if code.co_argcount else None,
        flags=future_flags(code),
        rebound=rebound_beside(found.original, found.enclosing)
        & {*code.co_cellvars, *code.co_freevars},
        is_last=is_function and _is_last(found),
        rewrites_asserts=is_rewritten_by_pytest(code),
    )


def _is_last(found: FoundStatement) -> bool:
    from .source.unsupported import is_last_of

    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    innermost = [one for one in found.enclosing if isinstance(one, (*functions, ast.ClassDef))][-1:]
    return any(isinstance(one, functions) and is_last_of(one, found.original) for one in innermost)


def _class_of(enclosing: tuple[ast.AST, ...]) -> str | None:
    classes = [one.name for one in enclosing if isinstance(one, ast.ClassDef)]
    return classes[-1] if classes else None


_one_skips = threading.RLock() if sys.version_info[:2] == (3, 12) else None
"""Held from `begin` to `end`, while one instruction of a frame is traced.

CPython 3.12 changes a code object for all threads when one of them starts or stops tracing; where
another one is in its trace function at that time, the process crashes. Before 3.12 tracing is a
thread's own, and 3.13 does not crash.
"""


class BodySkip:
    """Keeps the body of one block from running; the trace function of another tool survives it.

    A tracer in C (that of coverage) counts the functions that it sees called and left. It is back
    in force when the exit function of the `with` statement returns, whose call it has not seen; so
    it is kept from seeing that `begin` returns, which it has seen called.
    """

    __slots__ = ("_frame", "_local", "_thread_trace", "offset")

    def __init__(self, frame: FrameType) -> None:
        self._frame: FrameType | None = frame
        self.offset = frame.f_lasti
        self._thread_trace = sys.gettrace()
        self._local = frame.f_trace

    def begin(self) -> None:
        """Set the trace function; `end` puts back what stood before, also after a part of this."""
        frame = self._frame
        if frame is None:
            raise InternalError("a block is entered that has been left")
        if self._thread_trace is not None and not isinstance(self._thread_trace, _PYTHONS):
            sys._getframe().f_trace = None
        if _one_skips is not None:
            _one_skips.acquire()
        frame.f_trace = _raising
        frame.f_trace_opcodes = True
        sys.settrace(_no_trace)

    def end(self, error: BaseException | None) -> bool:
        """Put back the trace functions that stood before; tell whether the body was skipped.

        Args:
            error: what the `with` statement is left with.
        """
        frame, self._frame = self._frame, None
        if frame is not None:
            try:
                frame.f_trace = self._local
                frame.f_trace_opcodes = False
                unbind_hidden(frame)
                sys.settrace(self._thread_trace)
            finally:
                # an interrupt may have come before it was taken
                if _one_skips is not None and _one_skips._is_owned():  # type: ignore[attr-defined]
                    _one_skips.release()
        return error is None or type(error) is BodySkipped


def lead_debugger_on(frame: FrameType, program: Program) -> None:
    """Let a debugger that was going through a block line by line go on behind it.

    The block ran in a frame of its own, which is gone; Python's debuggers (bdb) would wait for it.
    """
    trace = sys.gettrace()
    if trace is None:
        return
    debugger = getattr(trace, "__self__", None)
    stop = getattr(debugger, "stopframe", None)
    if stop is None or debugger is None:
        return
    if any(stop.f_code is inner.code for inner in program.all_programs()):
        debugger.set_next(frame)
        frame.f_trace = debugger.trace_dispatch
        # From CPython 3.12 on, setting a trace function prepares the code of the frames that are
        # running. Where the debugger was started in a block that runs on a greenlet, this frame was
        # not among them.
        sys.settrace(None)
        sys.settrace(trace)


_PYTHONS = (FunctionType, MethodType)
"""Trace functions that Python calls for a frame only if they have seen it called."""


def _no_trace(frame: FrameType, event: str, arg: object) -> None:
    return None


def bind_target(frame: FrameType, offset: int, value: object) -> None:
    """Bind the `as` target of a block, as the `with` statement at an offset would have."""
    entry = _programs.get((id(frame.f_code), offset))
    target = None if entry is None else entry[2]
    if isinstance(target, ast.Name):
        set_names(frame, {target.id: value})
    elif target is not None:
        # a tuple, an attribute or an item: assigned by Python itself, in a copy of the namespace
        name = "_nns_target"
        assign = ast.Assign([target], ast.copy_location(ast.Name(name, ast.Load()), target))
        tree = ast.Module([ast.copy_location(assign, target)], [])
        code = one_at_a_time(compile)(tree, frame.f_code.co_filename, "exec")
        before = {**names_around(frame)}
        namespace = {**before, name: value}
        exec(code, frame.f_globals, namespace)
        del namespace[name]
        set_names(frame, {key: new for key, new in namespace.items() if before.get(key) is not new})
