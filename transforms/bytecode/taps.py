"""Tapping of operations: copy a function's code so that taps see and change chosen operations.

If only the result of `self.mlp(x)` is wanted, this:

    LOAD_FAST self, LOAD_METHOD mlp, LOAD_FAST x, CALL 1

becomes:

    LOAD_FAST self, LOAD_METHOD mlp, LOAD_FAST x, CALL 1, <top of the stack: after(result)>

If its arguments are wanted too, or the operation may be skipped, it becomes:

    LOAD_FAST self, LOAD_ATTR mlp, LOAD_FAST x, <pack callable and arguments>,
    <top of the stack: before(function, args, kwargs)>, <call it>, <top of the stack: after(result)>

`before` returns a callable, which is called without arguments in place of the operation, from the
function's own frame. A `functools.partial` adds no frame in between, so functions that inspect
their caller (`super`, `locals`, `warnings.warn`) find the frame they expect. An operator is
replaced by a call of the equivalent function of Python's module `operator`.

Every added instruction has the source position of the operation, and instructions of other
operations are not changed. The instrumented code is cached for each function and set of
operations, with placeholders among its constants; `tapped_code` fills in the taps by copying the
code object, which is cheap.

Instructions that depend on the Python version are written by `versions`. A mistake there shows as
a crash of the interpreter, so the tests check instrumented code with `verify.faults_in`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any, Protocol

from bytecode import Bytecode, Instr, Label
from bytecode.instr import UNSET, TryBegin, TryEnd

from . import versions
from .operations import CALL, Operation, Site, operations_of
from .stack import greatest_depth
from .versions import Pair


class OperationTap(Protocol):
    """The two callbacks of a tapped operation, called each time it is evaluated."""

    def before(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any]:
        """Return the callable to call in place of the operation, without arguments."""

    def after(self, value: Any) -> Any:
        """Return the value to continue with."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A placeholder among the constants of instrumented code for a tap's `before` or `after`.

    Attributes:
        operation: name of the operation.
        is_before: True for `before`, False for `after`.
        function: key in `FUNCTIONS`, if the operation is not a call.
        keywords: names of the call's keyword arguments, which are the last of its arguments.
        is_star: True for a call with `*args` or `**kwargs`.
    """

    operation: str
    is_before: bool
    function: str | None = None
    keywords: tuple[str, ...] = ()
    is_star: bool = False


def tapped_code(
    code: CodeType, taps: Mapping[str, OperationTap], around: frozenset[str]
) -> CodeType:
    """Return a copy of a function's code with some of its operations tapped.

    Args:
        code: code of the function.
        taps: the taps, by the names of their operations.
        around: names of the operations whose `before` is called too, because their arguments are
            wanted or they may be skipped.

    Raises:
        KeyError: the function has no operation of that name.
    """
    return _filled(_patched(code, frozenset(taps), around), taps)


@lru_cache(maxsize=1024)
def _patched(code: CodeType, names: frozenset[str], around: frozenset[str]) -> CodeType:
    operations = operations_of(code)
    sites = [(site, operations[name]) for name in sorted(names) for site in operations[name].sites]
    return _Patch(sites, around).code(code, ())


def _filled(code: CodeType, taps: Mapping[str, OperationTap]) -> CodeType:
    """Replace the placeholders among the constants by the callbacks of the taps."""
    return code.replace(co_consts=tuple(_constant(value, taps) for value in code.co_consts))


def _constant(value: Any, taps: Mapping[str, OperationTap]) -> Any:
    if isinstance(value, _Open):
        tap = taps[value.operation]
        return _packed(value, tap.before) if value.is_before else tap.after
    if isinstance(value, CodeType) and any(
        isinstance(inner, (_Open, CodeType)) for inner in value.co_consts
    ):
        return _filled(value, taps)
    return value


def _packed(place: _Open, before: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt `before` to the operands in the form in which the instrumented code packs them."""
    if place.function is not None:
        function = FUNCTIONS[place.function]

        def of_operands(operands: tuple[Any, ...]) -> Any:
            return before(function, operands, {})

        return of_operands
    if place.is_star:

        def of_star(function: Any, packed: Any) -> Any:
            args, kwargs = packed
            return before(function, tuple(args), dict(kwargs))

        return of_star
    if place.keywords:
        keywords, count = place.keywords, len(place.keywords)

        def of_keywords(function: Any, args: tuple[Any, ...]) -> Any:
            return before(function, args[:-count], dict(zip(keywords, args[-count:], strict=True)))

        return of_keywords

    def of_arguments(function: Any, args: tuple[Any, ...]) -> Any:
        return before(function, args, {})

    return of_arguments


def _same(value: Any) -> Any:
    return value


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: function for name, function in vars(operator).items() if callable(function)},
    "same": _same,
    "not_contains": operator.contains,
}
"""The equivalent functions of operations other than calls, by `Site.function`."""


class _Patch:
    """Write the instrumented copy of a code object and of its comprehensions."""

    def __init__(self, sites: list[tuple[Site, Operation]], around: frozenset[str]) -> None:
        self._sites = sites
        self._around = around

    def code(self, code: CodeType, inside: tuple[int, ...]) -> CodeType:
        entries = Bytecode.from_code(code, conserve_exception_block_stackdepth=True)
        here: dict[int, list[tuple[Site, Operation]]] = {}
        loops: set[int] = set()
        for site, operation in self._sites:
            if site.inside == inside:
                here.setdefault(site.index, []).append((site, operation))
            elif site.inside[: len(inside)] == inside:
                loops.add(site.inside[len(inside)])
        plain = {
            load
            for found in here.values()
            for site, operation in found
            if operation.name in self._around
            for load in site.method_loads
        }
        written: list[Instr | Label | TryBegin | TryEnd] = []
        for index, entry in enumerate(entries):
            if not isinstance(entry, Instr):
                written.append(entry)  # type: ignore[arg-type]
            elif index in here:
                self._write(written, entry, here[index])
            elif index in plain:
                _append(written, versions.plain_attribute(entry), entry)
            elif index in loops and isinstance(entry.arg, CodeType):
                inner = self.code(entry.arg, (*inside, index))
                _append(written, [(entry.name, inner)], entry)
            else:
                written.append(entry)
        entries[:] = written
        # otherwise the library renumbers the locals, and `locals()` has another order
        entries.argnames = list(code.co_varnames)
        return entries.to_code(
            stacksize=greatest_depth(entries), compute_exception_stack_depths=False
        )

    def _write(
        self,
        written: list[Any],
        entry: Instr,
        found: list[tuple[Site, Operation]],
    ) -> None:
        """Write an instruction together with the instrumentation around it."""
        names = versions.names_stored(entry)
        if names:
            taps = {operation.label: operation for _, operation in found}
            for pair, name in zip(versions.separate_stores(entry), (*names, None), strict=False):
                if name in taps:
                    _append(written, self._value(taps[name]), entry)
                _append(written, [pair], entry)
            return
        ((site, operation),) = found
        after = versions.through(_Open(operation.name, is_before=False))
        own, last = versions.separate_bool(entry)
        if entry.name == "RETURN_CONST":
            own = [("LOAD_CONST", entry.arg), *self._value(operation), ("RETURN_VALUE", UNSET)]
        elif entry.name == "RETURN_VALUE":
            own = [*self._value(operation), *own]
        elif operation.name not in self._around:
            own = [*own, *after, *last]
        elif operation.kind == CALL:
            own = [*self._call(written, entry, operation), *versions.called(), *after]
        else:
            before = versions.through(_Open(operation.name, True, site.function))
            inverse = [("UNARY_NOT", UNSET)] if site.function == "not_contains" else []
            own = [*_operands(entry), *before, *versions.called(), *inverse, *after, *last]
        _append(written, own, entry)

    def _value(self, operation: Operation) -> list[Pair]:
        """Pass the value on the top of the stack through the tap of an operation."""
        after = versions.through(_Open(operation.name, is_before=False))
        if operation.name not in self._around:
            return after
        before = versions.through(_Open(operation.name, True, "same"))
        return [("BUILD_TUPLE", 1), *before, *versions.called(), *after]

    def _call(self, written: list[Any], entry: Instr, operation: Operation) -> list[Pair]:
        """Pack a call's callable and arguments; drop PRECALL and KW_NAMES, which precede CALL."""
        name, arg = entry.name, versions.argument(entry)
        keywords: tuple[str, ...] = ()
        if name == "CALL_FUNCTION_EX":
            pack: list[Pair] = [] if arg & 1 else [("BUILD_MAP", 0)]
            place = _Open(operation.name, True, is_star=True)
            return [*pack, ("BUILD_TUPLE", 2), *versions.through_called(place)]
        if versions.HAS_PRECALL:
            written.pop()
        if name == "CALL_KW" or (written and getattr(written[-1], "name", "") == "KW_NAMES"):
            keywords = written.pop().arg
        place = _Open(operation.name, True, keywords=keywords)
        return [("BUILD_TUPLE", arg), *versions.through_called(place)]


def _operands(entry: Instr) -> Iterator[Pair]:
    """Pack the operands of an operator."""
    if entry.name == "BINARY_SLICE":
        yield "BUILD_SLICE", 2
    if entry.name == "CONTAINS_OP":
        # `operator.contains` takes the container first, the instruction has it on top
        yield "SWAP", 2
    is_unary = entry.name.startswith("UNARY") or entry.name == "CALL_INTRINSIC_1"
    yield "BUILD_TUPLE", 1 if is_unary else 2


def _append(written: list[Any], pairs: list[Pair], entry: Instr) -> None:
    """Append instructions with the source position of another one."""
    written.extend(Instr(name, arg, location=entry.location) for name, arg in pairs)
