"""Source lookup: find the text that a running code object was compiled from.

A code object holds a file name and positions, but no text, and the file of that name may have
another text by now: the file was edited after its import, two strings were compiled under one
name, an older cell of a notebook has a block at the same place. So every text that could be the
right one is a candidate, and a candidate is accepted only if it compiles to the running code (see
`same_code.py`). There is no fallback to the closest match, since lowering the wrong text would
silently run other statements than the user's.

Candidates, in this order:

1. the lines cached by `linecache`;
2. the texts that this package has kept (see `held_texts.py`);
3. the file on disk now, and the source that the module's loader returns;
4. the argument of `python -c`;
5. strings in the frames of the running functions, since code that executes a string usually still
   holds it;
6. the cells of a notebook;
7. all texts registered with `linecache` under other names.

The search runs once for each block; `live_frames` caches its result.
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
    """A `with` statement and the text that contains it.

    Attributes:
        node: the statement, with the positions of the running code.
        original: the same statement in the tree of the text, where its line numbers may differ.
        item: index of the item that is being entered.
        enclosing: the statements around it, outermost first.
        lines: lines of the text, without line ends.
    """

    node: ast.With
    original: ast.With
    item: int
    enclosing: tuple[ast.AST, ...]
    lines: list[str]


class Text:
    """One candidate text, parsed and compiled on demand."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self.lines = lines
        self._tree: ast.Module | None = None
        # set by `tree`; distinguishes "does not parse" from "not parsed yet", both without a tree
        self._is_parsed = False
        # by statement (the tree keeps it alive, so its identity is stable) and way of compiling
        self._compiled: dict[Any, tuple[CodeType, ...]] = {}

    @property
    def tree(self) -> ast.Module | None:
        """The syntax tree, None if the text does not parse."""
        if not self._is_parsed:
            self._is_parsed = True
            try:
                with warnings.catch_warnings():
                    # Python has already warned about the text (an invalid escape) when it ran
                    warnings.simplefilter("ignore")
                    self._tree = ast.parse("\n".join(self.lines) + "\n")
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                self._tree = None
        return self._tree

    def codes(self, statement: ast.stmt, like: CodeType) -> Iterator[CodeType]:
        """Yield the code objects of a statement, compiled in each way that `like` may have been.

        The context of the statement matters rarely, so the statement is compiled alone first.
        """
        alone = [statement]
        yield from self._codes(alone, like, ast.Module, -1)
        if self.tree is not None and len(self.tree.body) > 1:
            yield from self._codes(self.tree.body, like, ast.Module, -1)
        # an interactive prompt compiles in mode "single"; `%%timeit` puts a cell into a function
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
    """Return the `with` statement that a frame is entering, None if no candidate matches."""
    code, offset = frame.f_code, frame.f_lasti

    def found_in(text: Text) -> FoundStatement | None:
        return _statement_in(text, code, offset)

    return _first(found_in, code.co_filename, frame.f_globals, frame)


def find_function(code: CodeType, user_globals: dict[str, Any]) -> tuple[_Function, Text] | None:
    """Return the definition of a function and its text, None if no candidate matches."""

    def found_in(text: Text) -> tuple[_Function, Text] | None:
        return _function_in(text, code)

    return _first(found_in, code.co_filename, user_globals, sys._getframe(1))


def has_text(filename: str) -> bool:
    """Return whether any text can be found under a file name."""
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
"""Names that `_keep` registered with `linecache`, and so may replace for the next text.

An entry that the user registered is never replaced.
"""


def _keep(filename: str, lines: tuple[str, ...], *, is_named: bool) -> None:
    """Make a matching text available to the next lookup and to tracebacks.

    The text of a file is kept in `held_texts`; a text without a file is registered with
    `linecache`.
    """
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
    # the nearest first: an unmoved statement is the most likely match
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
    """Return whether the code of a candidate may match that of the frame, judged by name.

    `inner` is the function that `_in_function` puts around a statement.
    """
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
        # the tree is shared by all lookups in this text, so it must not be changed
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
    """List the positions that the entry instruction of a `with` statement may have.

    Up to CPython 3.12 it has the position of the whole statement, from 3.13 on that of its item.
    """
    yield node.lineno, node.end_lineno, node.col_offset, node.end_col_offset
    for each in (item.context_expr for item in node.items):
        yield each.lineno, each.end_lineno, each.col_offset, each.end_col_offset


def _is_like(position: tuple[int | None, ...], here: tuple[int | None, ...]) -> bool:
    """Compare two positions by height and columns, ignoring on which line they begin."""
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
    """Return the offsets at which code enters an item of a statement.

    There are two if the statement is in a `finally`, whose body Python compiles twice.
    """
    whole, *items = _positions(node)
    of_items = entries_at(code, items[item])  # type: ignore[arg-type]
    if of_items:
        return of_items
    found = entries_at(code, whole)  # type: ignore[arg-type]
    if not found:
        # under `-X no_debug_ranges` positions have lines only
        found = entries_at(code, (node.lineno, None, None, None))
        found += entries_at(code, (node.lineno, node.lineno, None, None))
    return [at for number, at in enumerate(found) if number % len(node.items) == item]


def _item_index(code: CodeType, offset: int, node: ast.With, here: tuple[int | None, ...]) -> int:
    """Return the index of the item of a `with` statement that is being entered."""
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
    """Yield the candidate texts, each with True if it was found under the name of the file."""
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
        # an entry without a modification time was registered by a program, not read from a file
        if name != filename and len(other) == 4 and other[1] is None:
            yield False, _stripped(other[2])


def _current(filename: str, user_globals: dict[str, Any]) -> Sequence[str]:
    """Return the current lines of a file.

    `checkcache` drops a `linecache` entry whose file is missing; the entry is put back then,
    because it may be the only text.
    """
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
        # a loader is arbitrary user code; whatever it raises means that it has no text
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
    """Yield the strings among the locals of a frame, one level into lists, tuples and dicts too."""
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
    # the string being run is usually the last one bound
    yield from (text for text in reversed(found) if len(text) > len("with a.b(): x"))


def _stripped(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.rstrip("\r\n") for line in lines)


def _split(text: str) -> tuple[str, ...]:
    """Split a text into lines as Python does; form feeds and Unicode separators end no line."""
    lines = _LINE_END.split(text)
    return tuple(lines[:-1] if lines and not lines[-1] else lines)


def _decoded(text: bytes) -> tuple[str, ...]:
    import tokenize

    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(text).readline)
        return _split(text.decode(encoding).removeprefix("\ufeff"))
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return ()
