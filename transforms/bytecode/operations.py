"""The operations of a function, found in its bytecode and named for the user.

An operation is a call, an operator, a subscript, the assignment of a local, or the value that is
returned. The forward

    def forward(self, hidden):
        normed = self.norm(hidden)
        return hidden + self.mlp(normed, scale=2)

has the operations `self_norm_0`, `normed`, `self_mlp_0`, `add_0` and `return_0`. The naming rules:

- a call has the dotted path of the callee, joined by `_`, and a number;
- an operator has its name in Python's module `operator` and a number;
- a local has its name, and a number from its second assignment on.

Numbers follow the order of the bytecode, which is that of evaluation. No source text is needed,
so this works on functions without one.

Python compiles some statements twice (the test of a `while`, the body of a `finally`). Both copies
have the same source position, and are one operation with two sites. Without column positions
(`-X no_debug_ranges`) they cannot be merged, and count as two operations.

Operations in a comprehension or generator expression belong to the function around it, as they do
in the text; functions and classes defined inside are separate functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any

from bytecode import BinaryOp, Bytecode, Instr

from . import versions
from .stack import Slot, Stack, stacks_before

CALL, OPERATOR, SUBSCRIPT, LOCAL, RETURN = "call", "operator", "subscript", "local", "return"

_OPERATORS = {
    "ADD": "add",
    "AND": "and_",
    "FLOOR_DIVIDE": "floordiv",
    "LSHIFT": "lshift",
    "MATRIX_MULTIPLY": "matmul",
    "MULTIPLY": "mul",
    "REMAINDER": "mod",
    "OR": "or_",
    "POWER": "pow",
    "RSHIFT": "rshift",
    "SUBTRACT": "sub",
    "TRUE_DIVIDE": "truediv",
    "XOR": "xor",
}
_UNARY = {
    "UNARY_NEGATIVE": "neg",
    "UNARY_INVERT": "invert",
    "UNARY_NOT": "not_",
    "UNARY_POSITIVE": "pos",
}
_UNARY_POSITIVE_INTRINSIC = 5
_LOOPS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


@dataclass(frozen=True, slots=True)
class Site:
    """The location of an operation in bytecode.

    Attributes:
        inside: indices of the instructions that load the code objects of the comprehensions around
            the operation, outermost first; empty if it is in the function's own code.
        index: index of the instruction among the entries of `Bytecode.from_code`.
        function: key in `taps.FUNCTIONS` of the equivalent function, None for a call.
        method_loads: indices of the method loads that push the two values below a call's arguments.
    """

    inside: tuple[int, ...]
    index: int
    function: str | None = None
    method_loads: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a function.

    Attributes:
        name: its unique name in the function, `self_mlp_0`.
        kind: `"call"`, `"operator"`, `"subscript"`, `"local"` or `"return"`.
        label: its name without the number, `self_mlp`.
        line: first line in the file; `end_line`, `column` and `end_column` complete the position.
        sites: its locations in the bytecode.
    """

    name: str
    kind: str
    label: str
    line: int
    end_line: int | None
    column: int | None
    end_column: int | None
    sites: tuple[Site, ...]


@lru_cache(maxsize=4096)
def operations_of(code: CodeType) -> Mapping[str, Operation]:
    """Return the operations of a function by name, in the order of evaluation."""
    found: dict[Any, Operation] = {}
    for key, operation in _sites(code, ()):
        known = found.get(key)
        if known is not None:
            operation = replace(known, sites=(*known.sites, *operation.sites))
        found[key] = operation
    names = _names([(operation.kind, operation.label) for operation in found.values()])
    return {
        name: replace(operation, name=name)
        for name, operation in zip(names, found.values(), strict=True)
    }


def _names(labels: Sequence[tuple[str, str]]) -> Sequence[str]:
    """Name operations by kind and label; on a clash, calls keep their names."""
    times = Counter(labels)
    counts: Counter[tuple[str, str]] = Counter()
    names: list[str] = []
    taken = {f"{label}_{i}" for (kind, label), n in times.items() if kind == CALL for i in range(n)}
    for kind, label in labels:
        number = counts[kind, label]
        counts[kind, label] += 1
        stem = label
        if kind not in (CALL, LOCAL):
            # the underscore of the operator `and_` avoids the keyword; that of a method `add_` or
            # of a local `_` belongs to the name
            stem = label.rstrip("_")
            if times[CALL, stem]:
                stem = f"{kind}_{stem}"
        name = stem if kind == LOCAL and number == 0 else f"{stem}_{number}"
        while kind != CALL and name in taken:
            name = f"{kind}_{name}"
        taken.add(name)
        names.append(name)
    return names


def _sites(code: CodeType, inside: tuple[int, ...]) -> Iterator[tuple[Any, Operation]]:
    """Yield the sites of a code object as operations, with a key that compiled copies share."""
    entries = Bytecode.from_code(code, conserve_exception_block_stackdepth=True)
    stacks = stacks_before(entries)
    finder = _Finder(entries, stacks)
    for index, entry in enumerate(entries):
        stack = stacks[index]
        if stack is None or not isinstance(entry, Instr):
            continue
        if entry.name.startswith("CALL") and entry.name != "CALL_INTRINSIC_1":
            load = finder.loop_called(index, stack)
            if load is not None:
                loop = entries[load]
                if isinstance(loop, Instr) and isinstance(loop.arg, CodeType):
                    yield from _sites(loop.arg, (*inside, load))
                continue
        for kind, label, site, extra in finder.at(index, entry, stack):
            if inside and kind in (LOCAL, RETURN):
                continue
            where = entry.location
            if where is None or where.lineno is None:
                continue
            position = (where.lineno, where.end_lineno, where.col_offset, where.end_col_offset)
            # without columns, copies cannot be told from other operations of the same line
            copy = extra if where.col_offset is not None else (inside, index)
            site = replace(site, inside=inside)
            yield (
                (kind, label, position, copy),
                Operation("", kind, label, *position, sites=(site,)),
            )


class _Finder:
    """Determine the operations at the instructions of a code object."""

    def __init__(self, entries: Bytecode, stacks: Any) -> None:
        self._entries = entries
        self._stacks = stacks
        self._in_loop = _inlined_loops(entries)

    def at(self, index: int, entry: Instr, stack: Stack) -> Iterator[tuple[str, str, Site, Any]]:
        name, arg = entry.name, versions.argument(entry)
        if name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX"):
            yield from self._call(index, entry, stack)
        elif name == "BINARY_OP":
            operator = BinaryOp(arg).name
            label = _OPERATORS.get(operator.removeprefix("INPLACE_"), "")
            if operator.startswith("INPLACE_"):
                label = f"i{label.rstrip('_')}"
            if label:
                yield OPERATOR, label, Site((), index, label), None
        elif name == "COMPARE_OP":
            label = versions.comparison(arg)
            # the comparisons of a chain (a < b < c) share a position, but not their right operand
            yield OPERATOR, label, Site((), index, label), self._location(stack[-1])
        elif name == "CONTAINS_OP":
            label = "not_contains" if arg else "contains"
            yield OPERATOR, label, Site((), index, label), self._location(stack[-1])
        elif name == "IS_OP":
            label = "is_not" if arg else "is_"
            yield OPERATOR, label, Site((), index, label), self._location(stack[-1])
        elif name in _UNARY:
            yield OPERATOR, _UNARY[name], Site((), index, _UNARY[name]), None
        elif name == "CALL_INTRINSIC_1" and arg == _UNARY_POSITIVE_INTRINSIC:
            yield OPERATOR, "pos", Site((), index, "pos"), None
        elif name in ("BINARY_SUBSCR", "BINARY_SLICE"):
            yield SUBSCRIPT, "getitem", Site((), index, "getitem"), None
        elif name in ("RETURN_VALUE", "RETURN_CONST"):
            yield RETURN, "return", Site((), index, "same"), None
        elif not self._is_inner_store(index, entry):
            for local in versions.names_stored(entry):
                yield LOCAL, local, Site((), index, "same"), local

    def _call(self, index: int, entry: Instr, stack: Stack) -> Iterator[tuple[str, str, Site, Any]]:
        below = self._below_arguments(index, entry, stack)
        callee = below[1 if versions.NULL_IS_FIRST else 0]
        # these instructions of `with`, `class` and `assert` push to the callee's slot too; the
        # calls that follow are not calls of the user's
        loads = [self._entries[i] for slot in below for i, _ in slot]
        names = {load.name for load in loads if isinstance(load, Instr)}
        if names & {"BEFORE_WITH", "BEFORE_ASYNC_WITH", "LOAD_BUILD_CLASS", "LOAD_ASSERTION_ERROR"}:
            return
        label = self._path(callee)
        if label == "super":
            # from CPython 3.12 on most calls of `super` are LOAD_SUPER_ATTR, so none is listed
            return
        if label is None:
            label = self._last_attribute(callee) or "call"
        methods = tuple(
            sorted(
                i
                for i in {source for slot in below for source, _ in slot}
                if isinstance(load := self._entries[i], Instr) and versions.is_method_load(load)
            )
        )
        yield CALL, label, Site((), index, None, methods), None

    def _below_arguments(self, index: int, entry: Instr, stack: Stack) -> Stack:
        """Return the two slots below the arguments of a call."""
        if entry.name == "CALL_FUNCTION_EX":
            count = 2 if versions.argument(entry) & 1 else 1
        elif versions.HAS_PRECALL:
            # in `bytecode`'s model of the stack, PRECALL has popped the arguments
            count = 0
        else:
            count = versions.argument(entry) + (entry.name == "CALL_KW")
        return stack[len(stack) - count - 2 : len(stack) - count]

    def loop_called(self, index: int, stack: Stack) -> int | None:
        """Return the index at which a comprehension's code is loaded, if it is called here."""
        entry = self._entries[index]
        if not isinstance(entry, Instr) or entry.name != "CALL":
            return None
        for slot in self._below_arguments(index, entry, stack):
            found = self._made_function(slot)
            if found is not None:
                return found
        return None

    def _made_function(self, slot: Slot) -> int | None:
        for source, _ in slot:
            entry, stack = self._entries[source], self._stacks[source]
            if not isinstance(entry, Instr) or not stack:
                continue
            if entry.name == "SET_FUNCTION_ATTRIBUTE":
                return self._made_function(stack[-1])
            if entry.name == "MAKE_FUNCTION":
                for load, _ in stack[-1]:
                    code = getattr(self._entries[load], "arg", None)
                    if isinstance(code, CodeType) and code.co_name in _LOOPS:
                        return int(load)
        return None

    def _path(self, slot: Slot) -> str | None:
        """Spell the path from which a value was loaded: a name, attributes and items of it."""
        if len(slot) != 1:
            return None
        ((source, position),) = slot
        entry, stack = self._entries[source], self._stacks[source]
        if not isinstance(entry, Instr):
            return None
        name = versions.name_loaded(entry, position)
        if name is not None:
            return name
        attribute = versions.attribute_loaded(entry)
        if attribute is not None and entry.name != "LOAD_SUPER_ATTR" and stack:
            path = self._path(stack[-1])
            return None if path is None else f"{path}_{attribute}"
        if entry.name == "BINARY_SUBSCR" and stack:
            return self._path(stack[-2])
        return None

    def _last_attribute(self, slot: Slot) -> str | None:
        for source, _ in slot:
            entry = self._entries[source]
            if len(slot) == 1 and isinstance(entry, Instr):
                return versions.attribute_loaded(entry)
        return None

    def _location(self, slot: Slot) -> Any:
        entries = (self._entries[source] for source, _ in sorted(slot))
        return tuple(entry.location for entry in entries if isinstance(entry, Instr))

    def _is_inner_store(self, index: int, entry: Instr) -> bool:
        """Return whether a store is not an assignment of the user's: generated or of a loop."""
        if index in self._in_loop:
            return True
        following = self._entries[index + 1] if index + 1 < len(self._entries) else None
        # at the end of `except ... as name` the name is set to None, then deleted
        return isinstance(following, Instr) and following.name in ("DELETE_FAST", "DELETE_DEREF")


def _inlined_loops(entries: Bytecode) -> frozenset[int]:
    """Return the indices of the stores that belong to inlined comprehensions (CPython 3.12 on)."""
    instructions = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, Instr)]
    found: set[int] = set()
    for start, first in instructions:
        if first.name != "LOAD_FAST_AND_CLEAR":
            continue
        # the outer value of the name is restored at the same position, at the end and on an error
        restoring = [
            i
            for i, entry in instructions
            if i > start
            and entry.name.startswith("STORE_FAST")
            and entry.location == first.location
            and str(first.arg) in versions.names_stored(entry)
        ]
        found.update(restoring)
        if restoring:
            found.update(
                i
                for i, entry in instructions
                if start < i < restoring[0] and str(first.arg) in versions.names_stored(entry)
            )
    return frozenset(found)
