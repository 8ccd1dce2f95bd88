"""Texts: which text a piece of running code was compiled from.

A code object knows the name of a file and positions in it, and no text. What bears that name now
may be another text: the file was edited after its import, two strings were compiled under one
name, an older cell of a notebook has a block at the same place. So every text that may be the
right one is a candidate, and one is taken only if it compiles to the code that runs (see
`same_code.py`); the nearest text is never good enough.

Candidates, in this order: what `linecache` holds, what this package has held (see
`held_texts.py`), what stands on disk or is given by the module's loader now, the argument of
`python -c`, strings in the functions that are running (who runs a text mostly still has it), the
cells of a notebook, and all texts that anybody has registered with `linecache`. All that is done
once for each block.
"""

from __future__ import annotations

import ast
import copy
import io
import linecache
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType
from typing import Any, TypeAlias, TypeVar

from .asserts import is_rewritten_by_pytest, rewrite_asserts
from .held_texts import held_texts, hold
from .same_code import (
    codes_in,
    entries_at,
    has_same_body,
    is_same_function,
    position_at,
)

_LINE_END = re.compile(r"\r\n|\r|\n")
_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class FoundStatement:
    """A statement, and the text it stands in.

    Attributes:
        node: the `with` statement, with the positions of the running code.
        original: the same in the tree of the text, where it may stand on other lines.
        item: index of the item that is entered.
        enclosing: the statements it stands in, from the outermost on.
        lines: lines of the text, without their ends.
    """

    node: ast.With
    original: ast.With
    item: int
    enclosing: tuple[ast.AST, ...]
    lines: list[str]


class Text:
    """One candidate, parsed and compiled where it has to be."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self.lines = lines
        self._tree: ast.Module | None = None
        self._is_parsed = False
        self._compiled: dict[Any, tuple[CodeType, ...]] = {}

    @property
    def tree(self) -> ast.Module | None:
        """The syntax tree, None where the text is no Python."""
        if not self._is_parsed:
            self._is_parsed = True
            try:
                with warnings.catch_warnings():
                    # Python has said about the text (an invalid escape) what it had to say
                    warnings.simplefilter("ignore")
                    self._tree = ast.parse("\n".join(self.lines) + "\n")
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                self._tree = None
        return self._tree

    def codes(self, statement: ast.stmt, like: CodeType) -> Iterator[CodeType]:
        """Compile a statement of the module in the ways in which a code object may have been.

        What stands around the statement matters rarely, so it is compiled by itself at first.
        """
        alone = [statement]
        yield from self._codes(alone, like, ast.Module, -1)
        if self.tree is not None and len(self.tree.body) > 1:
            yield from self._codes(self.tree.body, like, ast.Module, -1)
        # a prompt prints what statements are worth; `%%timeit` puts a cell into a function
        others = [
            ast.Module,
            _interactive,
            *([_in_function] if like.co_flags & CO_OPTIMIZED else []),
        ]
        for make in others:
            for level in (-1, 0, 1, 2):
                yield from self._codes(alone, like, make, level)

    def _codes(
        self,
        statements: list[ast.stmt],
        like: CodeType,
        make: Callable[[list[ast.stmt], list[Any]], ast.AST],
        optimize: int,
    ) -> Iterator[CodeType]:
        from .source.surroundings import future_flags

        is_rewritten = is_rewritten_by_pytest(like)
        flags = future_flags(like)
        key = (id(statements[0]), len(statements), make, optimize, is_rewritten, flags)
        if key not in self._compiled:
            self._compiled[key] = ()
            tree: Any = make(statements, [])
            if is_rewritten and isinstance(tree, ast.Module):
                tree = copy.deepcopy(tree)
                rewrite_asserts(tree)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    code = compile(
                        tree,
                        like.co_filename,
                        "single" if isinstance(tree, ast.Interactive) else "exec",
                        flags=flags | _TOP_LEVEL_AWAIT,
                        dont_inherit=True,
                        optimize=optimize,
                    )
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                pass
            else:
                self._compiled[key] = tuple(codes_in(code))
        yield from self._compiled[key]


def _interactive(statements: list[ast.stmt], _: list[Any]) -> ast.AST:
    return ast.Interactive(statements)


def _in_function(statements: list[ast.stmt], _: list[Any]) -> ast.AST:
    tree = ast.parse("def inner(): pass")
    function = tree.body[0]
    if isinstance(function, ast.FunctionDef):
        function.body = statements
    return tree


@lru_cache(maxsize=32)
def _text_of(lines: tuple[str, ...]) -> Text:
    return Text(lines)


# blocks


def find_statement(frame: FrameType) -> FoundStatement | None:
    """Return the `with` statement that a frame is entering, None where no text is the right one."""
    code, offset = frame.f_code, frame.f_lasti

    def found_in(text: Text) -> FoundStatement | None:
        return _statement_in(text, code, offset)

    return _first(found_in, code.co_filename, frame.f_globals, frame)


def find_function(code: CodeType, user_globals: dict[str, Any]) -> tuple[_Function, Text] | None:
    """Return the definition of a function, None where no text is the right one."""

    def found_in(text: Text) -> tuple[_Function, Text] | None:
        return _function_in(text, code)

    return _first(found_in, code.co_filename, user_globals, sys._getframe(1))


def has_text(filename: str) -> bool:
    """Tell whether there is any text under the name of a file."""
    return any(line.strip() for line in linecache.getlines(filename))


def _first(
    found_in: Callable[[Text], _Found | None],
    filename: str,
    user_globals: dict[str, Any],
    frame: FrameType,
) -> _Found | None:
    tried: set[tuple[str, ...]] = set()
    for is_named, lines in _candidates(filename, user_globals, frame):
        if lines in tried or not any("with" in line or "def" in line for line in lines):
            continue
        tried.add(lines)
        found = found_in(_text_of(lines))
        if found is not None:
            _keep(filename, lines, is_named=is_named)
            return found
    return None


_registered: set[str] = set()
"""Names of texts that were registered here; the next text may have the same."""


def _keep(filename: str, lines: tuple[str, ...], *, is_named: bool) -> None:
    """Let the next block of the text find it, and tracebacks show it."""
    text = "\n".join(lines) + "\n"
    if os.path.isfile(filename):
        hold(filename, text.encode())
    elif not is_named and (filename in _registered or filename not in linecache.cache):
        _registered.add(filename)
        linecache.cache[filename] = (len(text), None, text.splitlines(True), "")


def _statement_in(text: Text, code: CodeType, offset: int) -> FoundStatement | None:
    here = position_at(code, offset)
    tree = text.tree
    if here[0] is None or tree is None:
        return None
    candidates = [
        (node, enclosing)
        for node, enclosing in _withs(tree.body, ())
        if any(_is_like(position, here) for position in _positions(node))
    ]
    # first the one at the same place, then those that may have moved
    candidates.sort(key=lambda one: abs(_first_line(one[0], here) - (here[0] or 0)))
    for node, enclosing in candidates:
        outermost = enclosing[0] if enclosing else node
        if not isinstance(outermost, ast.stmt):
            continue
        item = _item_index(code, offset, node, here)
        by = (here[0] or 0) - _first_line(node, here)
        for other in text.codes(outermost, code):
            if not _may_be_same(code, other):
                continue
            for other_offset in _entries(other, node, item):
                if has_same_body(code, offset, other, other_offset):
                    return _moved(node, item, enclosing, text.lines, by)
    return None


def _may_be_same(code: CodeType, other: CodeType) -> bool:
    """Tell whether code of a text may be that of the frame, by its name alone."""
    return code.co_name == other.co_name or other.co_name in ("<module>", "inner")


def _moved(
    node: ast.With, item: int, enclosing: tuple[ast.AST, ...], lines: Sequence[str], by: int
) -> FoundStatement:
    original = node
    if by > 0:
        lines = [""] * by + list(lines)
    elif by < 0:
        lines = lines[-by:]
    if by:
        # the trees of a text are shared
        node = copy.deepcopy(node)
        ast.increment_lineno(node, by)
    return FoundStatement(node, original, item, enclosing, list(lines))


def _withs(
    body: Iterable[ast.AST], enclosing: tuple[ast.AST, ...]
) -> Iterator[tuple[ast.With, tuple[ast.AST, ...]]]:
    """List the `with` statements below some statements, with the statements around each."""
    for node in body:
        if isinstance(node, ast.With):
            yield node, enclosing
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            below = getattr(node, part, None)
            if isinstance(below, list):
                yield from _withs(below, (*enclosing, node))


def _positions(node: ast.With) -> Iterator[tuple[int | None, ...]]:
    """List the positions that the entry of a `with` statement may carry: up to 3.12 the whole's."""
    yield node.lineno, node.end_lineno, node.col_offset, node.end_col_offset
    for each in (item.context_expr for item in node.items):
        yield each.lineno, each.end_lineno, each.col_offset, each.end_col_offset


def _is_like(position: tuple[int | None, ...], here: tuple[int | None, ...]) -> bool:
    """Compare two positions, wherever in their files they are."""
    if here[2] is None:
        return True
    heights = [(end or 0) - (line or 0) for line, end, *_ in (position, here)]
    return heights[0] == heights[1] and position[2:] == here[2:]


def _first_line(node: ast.With, here: tuple[int | None, ...]) -> int:
    for position in _positions(node):
        if _is_like(position, here):
            return position[0] or 0
    return node.lineno


def _entries(code: CodeType, node: ast.With, item: int) -> list[int]:
    """Return the offsets at which code enters an item of a statement; twice in a `finally`."""
    whole, *items = _positions(node)
    of_items = entries_at(code, items[item])  # type: ignore[arg-type]
    if of_items:
        return of_items
    found = entries_at(code, whole)  # type: ignore[arg-type]
    if not found:
        # without columns
        found = entries_at(code, (node.lineno, None, None, None))
        found += entries_at(code, (node.lineno, node.lineno, None, None))
    return [at for number, at in enumerate(found) if number % len(node.items) == item]


def _item_index(code: CodeType, offset: int, node: ast.With, here: tuple[int | None, ...]) -> int:
    """Tell which of the items of a `with` statement is being entered."""
    if len(node.items) == 1:
        return 0
    whole, *items = _positions(node)
    if not _is_like(whole, here):
        # from 3.13 on the instruction carries the position of its own item
        return next((i for i, one in enumerate(items) if _is_like(one, here)), 0)
    return entries_at(code, here).index(offset) % len(node.items)  # type: ignore[arg-type]


# functions


def _function_in(text: Text, code: CodeType) -> tuple[_Function, Text] | None:
    if text.tree is None:
        return None
    for node, outermost in _functions(text.tree.body, None):
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        if node.name != code.co_name or first != code.co_firstlineno:
            continue
        for other in text.codes(outermost, code):
            if other.co_name == code.co_name and is_same_function(code, other):
                return node, text
    return None


def _functions(
    body: Iterable[Any], outermost: ast.stmt | None
) -> Iterator[tuple[_Function, ast.stmt]]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node, outermost or node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            below = getattr(node, part, None)
            if isinstance(below, list):
                yield from _functions(below, outermost or node)


# candidates


def _candidates(
    filename: str, user_globals: dict[str, Any], frame: FrameType
) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """List the texts, and whether each is known by the name of the file."""
    entry = linecache.cache.get(filename)
    if entry is not None and len(entry) == 4:
        yield True, _stripped(entry[2])
    for held in held_texts(filename):
        yield True, _decoded(held)
    yield True, _stripped(_current(filename, user_globals))
    loaded = _loaded(user_globals)
    if loaded is not None:
        yield True, loaded
    for text in _loose_texts(frame):
        if "with" in text or "def" in text:
            yield False, _split(text)
    for name, other in list(linecache.cache.items()):
        # what has no time was registered, and is no file
        if name != filename and len(other) == 4 and other[1] is None:
            yield False, _stripped(other[2])


def _current(filename: str, user_globals: dict[str, Any]) -> Sequence[str]:
    """Return what stands in a file now; what `linecache` held is put back if there is no file."""
    entry = linecache.cache.get(filename)
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, user_globals)
    if entry is not None and not lines:
        linecache.cache[filename] = entry
    return lines


def _loaded(user_globals: Mapping[str, Any]) -> tuple[str, ...] | None:
    try:
        text = user_globals["__loader__"].get_source(user_globals["__name__"])
    except Exception:
        # a loader may be anything, and that it has no text to give is all that can be learnt
        return None
    return _split(text) if isinstance(text, str) else None


def _loose_texts(frame: FrameType) -> Iterator[str]:
    arguments = sys.orig_argv
    if "-c" in arguments[:-1]:
        yield arguments[arguments.index("-c") + 1]
    outer: FrameType | None = frame
    while outer is not None:
        yield from _texts_in(outer)
        outer = outer.f_back
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        history = getattr(shell, "history_manager", None)
        for cells in ("input_hist_parsed", "input_hist_raw"):
            for cell in reversed(list(getattr(history, cells, ()))):
                yield cell
                if "%" in cell or "!" in cell:
                    yield shell.transform_cell(cell)


def _texts_in(frame: FrameType) -> Iterator[str]:
    """List the strings that a running function has, also in a list or a dictionary."""
    from .frame_names import forget_snapshot

    found: list[str] = []
    for value in list(frame.f_locals.values()):
        if isinstance(value, str):
            found.append(value)
        elif type(value) in (list, tuple):
            found += [item for item in value if isinstance(item, str)]
        elif type(value) is dict and len(value) < 10_000:
            found += [item for item in list(value.values()) if isinstance(item, str)]
    value = None
    forget_snapshot(frame)
    # the nearest is most often the last
    yield from (text for text in reversed(found) if len(text) > len("with a.b(): x"))


def _stripped(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.rstrip("\r\n") for line in lines)


def _split(text: str) -> tuple[str, ...]:
    """Split a text into lines as Python does: a form feed or a Unicode separator ends none."""
    lines = _LINE_END.split(text)
    return tuple(lines[:-1] if lines and not lines[-1] else lines)


def _decoded(text: bytes) -> tuple[str, ...]:
    import tokenize

    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(text).readline)
        return _split(text.decode(encoding).removeprefix("\ufeff"))
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return ()
