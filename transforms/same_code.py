"""Comparison of code objects: were two of them compiled from the same statements?

A text is trusted only if it compiles to the running code (see `texts.py`). Equality of whole code
objects is too strict for that: a notebook compiles a cell statement by statement, pytest rewrites
an `assert` next to the block, a decorator wraps the function. So the comparison is limited to the
body of one `with` statement: its instructions with their names, constants, jumps and positions,
and the functions inside it likewise.

The exception table shows which instructions belong to the body: those covered by the handler of
the `with` statement, directly or through the handlers of statements inside the body. Lines are
counted from the statement, so that a block that has only moved compares equal.

    has_same_body(frame.f_code, frame.f_lasti, candidate, offset)

Two texts that differ only in comments or layout of one line may compile to the same code; then
either is right. Instructions that depend on the scope around the block, such as the kind of a
name's load, are normalised by `_keys`; an opcode missed there makes a right text look wrong, and
the block is refused.
"""

from __future__ import annotations

import dis
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeAlias

Position: TypeAlias = "tuple[int | None, int | None, int | None, int | None]"
"""First line, last line, first column, end column, as `co_positions` yields them."""

_NAME_ENDINGS = frozenset(
    "NAME GLOBAL FAST FAST_CHECK FAST_AND_CLEAR DEREF CLASSDEREF CLOSURE "
    "FROM_DICT_OR_GLOBALS FROM_DICT_OR_DEREF".split()
)
"""Endings of opcodes that load or store a name.

The ending depends on the scope around the block, so only the verb and the name are compared.
"""

_LEFT_OUT = frozenset(
    "NOP RESUME EXTENDED_ARG PUSH_NULL PRECALL LOAD_LOCALS COPY_FREE_VARS".split()
)
"""Opcodes that depend on the scope, on the size of the code or on where a call's NULL is pushed."""

BEFORE_WITH = "BEFORE_WITH"


def position_at(code: CodeType, offset: int) -> Position:
    """Return the position of the instruction at an offset."""
    for number, position in enumerate(code.co_positions()):
        if number == offset // 2:
            return position
    return None, None, None, None


def is_entry(code: CodeType, offset: int) -> bool:
    """Return whether the instruction at an offset enters a `with` statement."""
    return 0 <= offset < len(code.co_code) and dis.opname[code.co_code[offset]] == BEFORE_WITH


def entries_at(code: CodeType, position: Position) -> list[int]:
    """Return the offsets of all entries of `with` statements at a position."""
    instructions = code.co_code
    wanted = dis.opmap[BEFORE_WITH]
    return [
        2 * number
        for number, found in enumerate(code.co_positions())
        if instructions[2 * number] == wanted and found == position
    ]


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and, recursively, the code objects among its constants."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from codes_in(const)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names used by a code object and by the code objects among its constants."""
    for each in codes_in(code):
        yield from each.co_names
        yield from each.co_varnames


def has_same_body(code: CodeType, offset: int, other: CodeType, other_offset: int) -> bool:
    """Return whether two `with` statements have the same body.

    Each is given by its code object and the offset of the instruction that enters it.
    """
    if offset == other_offset and code == other:
        return True
    here, there = position_at(code, offset), position_at(other, other_offset)
    if here[0] is None or there[0] is None:
        return False
    # code compiled under `-X no_debug_ranges` has lines but no columns
    columns = here[2] is not None and there[2] is not None
    body = _body(code, offset, _Places(here[0], columns))
    return body is not None and body == _body(other, other_offset, _Places(there[0], columns))


def is_same_function(code: CodeType, other: CodeType) -> bool:
    """Return whether two functions have the same code, ignoring on which lines they begin."""
    if code == other:
        return True
    columns = all(_has_columns(each) for each in (code, other))
    return _function(code, _Places(code.co_firstlineno, columns)) == _function(
        other, _Places(other.co_firstlineno, columns)
    )


def _has_columns(code: CodeType) -> bool:
    return any(position[2] is not None for position in code.co_positions())


@dataclass(frozen=True, slots=True)
class _Places:
    """A format for positions: relative to which line, and with or without columns."""

    line: int
    columns: bool

    def of(self, positions: dis.Positions | None) -> tuple[int | None, ...]:
        if positions is None or positions.lineno is None:
            return ()
        moved = positions.lineno - self.line
        if not self.columns:
            return (moved,)
        end = positions.end_lineno
        end = None if end is None else end - self.line
        return (moved, end, positions.col_offset, positions.end_col_offset)


def _body(code: CodeType, offset: int, places: _Places) -> list[Any] | None:
    listing = _listing_of(code)
    offsets = listing.offsets
    after = bisect_left(offsets, offset) + 1
    handler = listing.handler(offsets[after]) if after < len(offsets) else None
    if handler is None:
        return None

    def is_inside(target: int) -> bool:
        above: int | None = target
        seen: set[int] = set()
        while above is not None and above != handler and above not in seen:
            seen.add(above)
            above = listing.handler(above)
        return above == handler

    found: list[dis.Instruction] = []
    for start, end, target in listing.table:
        if is_inside(target):
            first, last = bisect_left(offsets, start), bisect_left(offsets, end)
            found += listing.instructions[first:last]
    return _keys(found, places)


@dataclass(frozen=True, slots=True)
class _Listing:
    """The instructions of a code object, their offsets, and its exception table."""

    code: CodeType
    instructions: list[dis.Instruction]
    offsets: list[int]
    table: list[tuple[int, int, int]]
    starts: list[int]

    def handler(self, offset: int) -> int | None:
        """Return the offset of the handler of an exception at an offset, None if there is none."""
        index = bisect_right(self.starts, offset) - 1
        if index < 0 or offset >= self.table[index][1]:
            return None
        return self.table[index][2]


_last: list[_Listing] = []
"""A cache of the four code objects used last; the blocks of one module or cell share one."""


def _listing_of(code: CodeType) -> _Listing:
    for known in list(_last):
        if known.code is code:
            _last[:] = [known, *(one for one in _last if one is not known)]
            return known
    instructions = list(dis.get_instructions(code))
    table = _exception_table(code)
    listing = _Listing(
        code,
        instructions,
        [one.offset for one in instructions],
        table,
        [start for start, *_ in table],
    )
    _last[:] = [listing, *_last[:3]]
    return listing


def _function(code: CodeType, places: _Places) -> tuple[Any, ...]:
    return (
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        code.co_varnames[: code.co_argcount + code.co_kwonlyargcount],
        _keys(list(dis.get_instructions(code)), places),
    )


def _keys(instructions: Sequence[dis.Instruction], places: _Places) -> list[Any]:
    """Convert instructions to keys that are equal for two compilations of the same text."""
    kept = [one for one in instructions if one.opname not in _LEFT_OUT]
    offsets = [one.offset for one in kept]
    last = instructions[-1].offset if instructions else 0
    keys: list[Any] = []
    for one in kept:
        place = places.of(one.positions)
        verb, _, ending = one.opname.partition("_")
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            target = int(one.argval)
            # a jump out of the body leads to code that depends on the text around the block
            is_inside = bool(offsets) and offsets[0] <= target <= last
            keys.append((one.opname, bisect_left(offsets, target) if is_inside else None, place))
        elif ending in _NAME_ENDINGS:
            keys.append((verb, one.argval, place))
        elif isinstance(one.argval, tuple) and one.opname.count("FAST") == 2:
            # from CPython 3.13 on one opcode may do two of these, as STORE_FAST_LOAD_FAST does
            words = one.opname.split("_")
            keys.append((words[0], one.argval[0], place))
            keys.append((words[2], one.argval[1], place))
        else:
            keys.append((one.opname, _constant(one.argval, places), place))
    return keys


def _constant(value: Any, places: _Places) -> Any:
    """Convert a constant to a key that tells apart `1`, `1.0` and `True`, and `0.0` and `-0.0`."""
    if isinstance(value, CodeType):
        return (value.co_name, value.co_firstlineno - places.line, _function(value, places))
    if isinstance(value, (tuple, frozenset)):
        return (type(value), type(value)(_constant(item, places) for item in value))
    return (type(value), repr(value) if isinstance(value, (float, complex)) else value)


def _exception_table(code: CodeType) -> list[tuple[int, int, int]]:
    """Decode the exception table to (start, end, handler) offsets.

    The format is described in CPython's `Objects/exception_handling_notes.txt`.
    """
    data = iter(code.co_exceptiontable)

    def number(first: int) -> int:
        value = first & 63
        while first & 64:
            first = next(data)
            value = (value << 6) | (first & 63)
        return value

    table = []
    for first in data:
        start = number(first) * 2
        length, target = (number(next(data)) * 2 for _ in range(2))
        number(next(data))  # the depth of the stack
        table.append((start, start + length, target))
    return table
