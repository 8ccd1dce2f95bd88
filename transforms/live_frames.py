"""Blocks in live frames: find the text, skip the body, write the names back.

In a plain script, unlike in a module imported through the import hook, the first this package
sees of a block is that its `with` statement is entered. The body must not run in the user's
frame, since the lowered program runs in its place. The frame is handled in three steps:

- `find_block` finds the statement in the text that the running code was compiled from (see
  `texts.py`) and lowers it. The program is cached by code object and instruction, so that later
  entries cost a dictionary lookup.
- `BodySkip` keeps the body from running. It sets a trace function that raises at the instruction
  after the entry, which would bind the `as` target. This is the last instruction that is covered
  by the handler of this `with` statement alone (a body may begin with `try`), so the exception
  reaches its `__exit__`, which swallows it. `bind_target` binds the target instead.
- `set_names` (see `frame_names.py`) binds the block's names in the frame after the run.

The trace function of a debugger or of a coverage tool is restored when the block ends.
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
"""Cache of lowered blocks, by identity of the code object and offset of the entry instruction.

Each entry holds its code object, so that the identity is not reused.
"""


BodySkipped: type[Exception] = struct.error
"""Control flow: the error that `_raising` raises in place of the body of a block.

Only the `__exit__` of the `with` statement sees it.
"""

_raising: Callable[..., Any] = struct.Struct("").pack
"""A trace function written in C that always raises, because it takes no arguments and gets three.

Before Python 3.13 the names of a frame are copied into a dictionary before a trace function is
called, and all of them are copied back afterwards. A trace function in Python would let other
threads run in between; if one of them bound a name of the frame, as a closure does by `nonlocal`,
the binding would be lost. While this function is called no Python code runs.
"""


def find_block(frame: FrameType) -> Program:
    """Return the program of the `with` statement that a frame is entering.

    Raises:
        BlockUseError: the frame is not at the entry of a `with` statement.
        BlockNotFoundError: no candidate text compiles to the code of the frame.
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
        # imported late, because it imports libcst, which takes long and is needed for lowering only
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
            "each text its own file name and register it with linecache before it runs"
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
        # a class body or `exec`: any name may be local, and the others are found by the fallback
        # to globals when the program starts
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
"""On CPython 3.12, a lock held from `begin` to `end`, while an instruction of a frame is traced.

CPython 3.12 instruments a code object for all threads when one thread starts or stops tracing. If
another thread is in its trace function at that moment, the process crashes. Before 3.12 tracing is
per thread, and 3.13 does not crash.
"""


class BodySkip:
    """Keep the body of one block from running, and preserve the trace function of another tool.

    A tracer written in C, such as that of coverage, counts calls and returns. It is restored
    inside `__exit__`, so it sees that function return without having seen its call. To balance
    this, `begin` hides its own return, whose call the tracer has seen.
    """

    __slots__ = ("_frame", "_local", "_thread_trace", "offset")

    def __init__(self, frame: FrameType) -> None:
        # None once `end` has run: a block is entered and left once
        self._frame: FrameType | None = frame
        # where the frame enters the `with`, for `bind_target`, which runs later
        self.offset = frame.f_lasti
        self._thread_trace = sys.gettrace()
        self._local = frame.f_trace

    def begin(self) -> None:
        """Set the trace function. `end` undoes this, even if an interrupt cut it short."""
        frame = self._frame
        if frame is None:
            raise InternalError("a block is entered that has been left")
        # a tracer in C has seen the call of `begin`, so it must not see its return (see the class)
        if self._thread_trace is not None and not isinstance(self._thread_trace, _PYTHONS):
            sys._getframe().f_trace = None
        if _one_skips is not None:
            _one_skips.acquire()
        frame.f_trace = _raising
        frame.f_trace_opcodes = True
        sys.settrace(_no_trace)

    def end(self, error: BaseException | None) -> bool:
        """Restore the previous trace functions.

        Args:
            error: the exception passed to `__exit__`.

        Returns:
            True if the body was skipped, so that `error` should be swallowed.
        """
        frame, self._frame = self._frame, None
        if frame is not None:
            try:
                frame.f_trace = self._local
                frame.f_trace_opcodes = False
                unbind_hidden(frame)
                sys.settrace(self._thread_trace)
            finally:
                # if an interrupt cut `begin` short, the lock was not acquired
                if _one_skips is not None and _one_skips._is_owned():  # type: ignore[attr-defined]
                    _one_skips.release()
        return error is None or type(error) is BodySkipped


def lead_debugger_on(frame: FrameType, program: Program) -> None:
    """Let a debugger that was stepping through a block continue after it, in `frame`.

    The block ran in a separate frame, which is gone; a bdb debugger would wait for that frame to
    run another line.
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
        # From CPython 3.12 on, setting a trace function instruments the code of the running
        # frames. If the debugger was started in a block that runs on a greenlet, this frame was
        # not among them.
        sys.settrace(None)
        sys.settrace(trace)


_PYTHONS = (FunctionType, MethodType)
"""Types of trace functions written in Python.

CPython calls these for the return of a frame only if they have traced its call. Tracers of other
types get all returns.
"""


def _no_trace(frame: FrameType, event: str, arg: object) -> None:
    return None


def bind_target(frame: FrameType, offset: int, value: object) -> None:
    """Bind the `as` target of a block, as the skipped instruction of its `with` would have.

    Args:
        frame: the frame of the block.
        offset: offset of the instruction that enters the `with` statement.
        value: the value to bind.
    """
    entry = _programs.get((id(frame.f_code), offset))
    target = None if entry is None else entry[2]
    if isinstance(target, ast.Name):
        set_names(frame, {target.id: value})
    elif target is not None:
        # a tuple, an attribute or an item: an `exec` in a copy of the namespace assigns it, and
        # the names that it has changed are written back
        name = "_nns_target"
        assign = ast.Assign([target], ast.copy_location(ast.Name(name, ast.Load()), target))
        tree = ast.Module([ast.copy_location(assign, target)], [])
        code = one_at_a_time(compile)(tree, frame.f_code.co_filename, "exec")
        before = {**names_around(frame)}
        namespace = {**before, name: value}
        exec(code, frame.f_globals, namespace)
        del namespace[name]
        set_names(frame, {key: new for key, new in namespace.items() if before.get(key) is not new})
