"""Blocks of live frames: find the text, skip the body, hand the names back.

In a plain script a block is met when Python enters its `with` statement. Three things are done
to the frame that stands there:

- `find_block` finds the statement in the source text with `executing`, and lowers it; the
  program is kept by code object and instruction, so that a second entry costs a dictionary
  lookup.
- `BodySkip` keeps the body from running where it stands: a trace function is set, which raises
  `BodySkipped` at the instruction after the entry, the one that would bind the `as` target. It is
  the last one that only the `with` statement's own handler covers (a body may begin with `try`),
  and that handler swallows the exception. `bind_target` binds the target in its place.
- `set_names` rebinds names of the frame after the run.
"""

from __future__ import annotations

import ast
import ctypes
import linecache
import sys
from collections.abc import Mapping
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import BlockNotFoundError, BlockUseError
from .parsing import one_at_a_time

if TYPE_CHECKING:
    from .program import Program

_Entry: TypeAlias = "tuple[CodeType, Program, ast.expr | None]"

_programs: dict[tuple[int, int], _Entry] = {}
"""By identity of the code object and offset of the instruction; the entry keeps the code alive."""


class BodySkipped(BaseException):
    """Control flow, not an error: the body of a block does not run where it stands."""


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
        node, item, lines = _find_statement(frame)
        # libcst is imported where a block is lowered, and only there
        from .source.pipeline import lower_block

        program = lower_block(node, item, _surroundings(frame, node, lines))
        entry = _programs[key] = (frame.f_code, program, node.items[item].optional_vars)
    return entry


def _find_statement(frame: FrameType) -> tuple[ast.With, int, list[str]]:
    import executing

    code = frame.f_code
    if code.co_filename == "<string>":
        _register_command()
    elif code.co_filename.startswith("<") and (
        code.co_filename in _evaluated or code.co_filename not in linecache.cache
    ):
        _register_evaluated(frame)
    # executing knows the statement by the instruction, in code that pytest has rewritten too
    found = executing.Source.executing(frame)
    node = found.node
    if isinstance(node, ast.With):
        return node, _item_index(code, frame.f_lasti, node), list(found.source.lines)
    lines = found.source.lines
    # in some cells of a notebook executing knows no statement: look for it by its position
    tree: ast.AST | None = found.source.tree
    statement = None if tree is None else _statement_at(frame, tree)
    if statement is not None:
        return statement, _item_index(code, frame.f_lasti, statement), list(lines)
    if not lines or not "".join(lines).strip():
        raise BlockNotFoundError(
            f"the source of {code.co_filename!r} is nowhere to be found, so the block at line "
            f"{frame.f_lineno} cannot be lowered; write it to a file, or register its text with "
            "linecache before it runs"
        )
    raise BlockUseError(
        f"line {frame.f_lineno} of {code.co_filename!r} enters a block otherwise than by a "
        "'with' statement; write 'with model.trace(...):' with the block below it"
    )


def _register_command() -> None:
    """Let linecache find the text of `python -c`, which Python itself registers from 3.13 on."""
    arguments = sys.orig_argv
    if "-c" in arguments and "<string>" not in linecache.cache:
        text = arguments[arguments.index("-c") + 1]
        linecache.cache["<string>"] = (len(text), None, text.splitlines(True), "<string>")


# before PEP 667 (Python 3.13) `f_locals` is a copy, which this call writes back
_write_back: Any = None
if sys.version_info < (3, 13):
    _write_back = ctypes.pythonapi.PyFrame_LocalsToFast
    _write_back.argtypes = [ctypes.py_object, ctypes.c_int]
    _write_back.restype = None

_evaluated: set[str] = set()
"""Names of texts that were found in the function that runs them; the next may have the same."""


def _register_evaluated(frame: FrameType) -> None:
    """Let linecache find a text that was compiled without being registered, as by `%%time`.

    The function that runs a compiled text mostly still has the text in one of its names. It is
    the right one if the `with` statement stands in it, at the position that the code tells.
    """
    outside = frame
    while outside.f_back is not None and outside.f_code.co_filename == frame.f_code.co_filename:
        outside = outside.f_back
    for text in outside.f_locals.values():
        if isinstance(text, str) and "with" in text:
            try:
                tree = ast.parse(text)
            except (SyntaxError, ValueError):
                continue
            if _statement_at(frame, tree) is not None:
                lines = text.splitlines(True)
                linecache.cache[frame.f_code.co_filename] = (len(text), None, lines, "")
                _evaluated.add(frame.f_code.co_filename)
                return


def _statement_at(frame: FrameType, tree: ast.AST) -> ast.With | None:
    here = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            line, end_line, column, end_column = here
            found = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
            if found == (line, end_line, column, end_column):
                return node
    return None


def _item_index(code: CodeType, offset: int, node: ast.With) -> int:
    """Tell which of the items of a `with` statement is being entered, by counting entries."""
    if len(node.items) == 1:
        return 0
    positions = list(code.co_positions())
    here = positions[offset // 2]
    import dis

    entries = [
        instruction.offset
        for instruction in dis.get_instructions(code)
        if instruction.opname == "BEFORE_WITH" and positions[instruction.offset // 2] == here
    ]
    if len(entries) == len(node.items):
        return entries.index(offset)
    # from 3.13 on the instruction carries the position of its own item
    for index, item in enumerate(node.items):
        context = item.context_expr
        if (context.lineno, context.col_offset) == (here[0], here[2]):
            return index
    return len(node.items) - 1


def _surroundings(frame: FrameType, node: ast.With, lines: list[str]) -> Any:
    from .source.scopes import rebound_beside
    from .source.surroundings import Surroundings, future_flags

    code = frame.f_code
    is_function = bool(code.co_flags & CO_OPTIMIZED)
    known = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    if not is_function and frame.f_locals is not frame.f_globals:
        # a class body or exec: any name may be local, and what is not is looked up at the start
        known = tuple({found.id for found in ast.walk(node) if isinstance(found, ast.Name)})
    return Surroundings(
        filename=code.co_filename,
        lines=[line.rstrip("\r\n") for line in lines],
        name=code.co_name,
        locals=frozenset(known),
        is_function=is_function,
        class_name=_class_of(node),
        first_argument=code.co_varnames[0] if code.co_argcount else None,
        flags=future_flags(code),
        rebound=rebound_beside(node) & {*code.co_cellvars, *code.co_freevars},
    )


def _class_of(node: ast.AST) -> str | None:
    parent = getattr(node, "parent", None)
    while parent is not None:
        if isinstance(parent, ast.ClassDef):
            return parent.name
        parent = getattr(parent, "parent", None)
    return None


class BodySkip:
    """Keeps the body of one block from running; a debugger's own trace function survives it."""

    __slots__ = ("_frame", "_local", "_thread_trace", "offset")

    def __init__(self, frame: FrameType) -> None:
        self._frame: FrameType | None = frame
        self.offset = frame.f_lasti
        self._thread_trace = sys.gettrace()
        self._local = frame.f_trace
        frame.f_trace = self._at_instruction
        frame.f_trace_opcodes = True
        sys.settrace(_no_trace)

    def _at_instruction(self, frame: FrameType, event: str, arg: object) -> Any:
        raise BodySkipped

    def end(self) -> None:
        """Put back the trace functions that stood before."""
        frame, self._frame = self._frame, None
        if frame is not None:
            frame.f_trace = self._local
            frame.f_trace_opcodes = False
            sys.settrace(self._thread_trace)


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


def _no_trace(frame: FrameType, event: str, arg: object) -> None:
    return None


def names_around(frame: FrameType) -> Mapping[str, Any]:
    """Return what the names of a frame stand for, those of an enclosing function too.

    In the frame of a class body the names that it has from an enclosing function are missing; they
    are found in the frame of that function, which is running the class body.
    """
    code, outer = frame.f_code, frame.f_back
    if code.co_flags & CO_OPTIMIZED or not code.co_freevars or outer is None:
        return frame.f_locals
    enclosing = outer.f_locals
    free = {name: enclosing[name] for name in code.co_freevars if name in enclosing}
    return {**free, **frame.f_locals}


def forget_snapshot(frame: FrameType) -> None:
    """Let a frame forget the copy of its names that looking at them has made.

    Before PEP 667 (Python 3.13) the copy stays with the frame, and keeps the values of names that
    the user deletes afterwards. It is left alone where somebody else holds it, too.
    """
    if sys.version_info < (3, 13) and frame.f_code.co_flags & CO_OPTIMIZED:
        snapshot = frame.f_locals
        # the frame, the name above and the argument of getrefcount
        if sys.getrefcount(snapshot) <= 3:
            snapshot.clear()


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
        before = {**frame.f_locals}
        namespace = {**before, name: value}
        exec(code, frame.f_globals, namespace)
        del namespace[name]
        set_names(frame, {key: new for key, new in namespace.items() if before.get(key) is not new})


def set_names(frame: FrameType, values: Mapping[str, Any]) -> None:
    """Bind names in a live frame, as if it had assigned them itself."""
    if not values:
        return
    code = frame.f_code
    if not code.co_flags & CO_OPTIMIZED:
        frame.f_locals.update(values)
        return
    namespace = frame.f_locals
    for name, value in values.items():
        if name in code.co_varnames or name in code.co_cellvars or name in code.co_freevars:
            namespace[name] = value
        else:
            # a name declared global in the function is none of its locals
            frame.f_globals[name] = value
    if _write_back is not None:
        _write_back(frame, 0)
