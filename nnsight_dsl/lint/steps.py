"""Loops over generation steps, with the step numbers that are written in the text.

    for step in tracer.iter[1:3]:       # first=1, last=2
    for step in tracer.iter[:]:         # first=0, is_open=True
    for step in tracer.iter[start:]:    # first=None, is_open=True

A number that is computed is unknown, and rules report nothing that depends on it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from nnsight_dsl.transforms.source.unsupported import is_steps

from .accesses import Machine
from .blocks import Block
from .tree import Conditions


@dataclass(frozen=True, slots=True, eq=False)
class StepLoop:
    """One loop over steps.

    Attributes:
        node: the `for` or `with` statement.
        header: the expression it loops over.
        conditions: the conditions under which it is entered.
        is_open: True if it continues to the end of the run.
        first: its first step, None if it is not a literal.
        last: its last step, None if the loop is open or the step is not a literal.
        may_break: True if it may be left early.
    """

    node: ast.For | ast.With
    header: ast.expr
    conditions: Conditions
    is_open: bool
    first: int | None
    last: int | None
    may_break: bool


def step_loops(machine: Machine) -> list[StepLoop]:
    """Return the loops over steps of a block, in order of position."""
    found = []
    for node in machine.block.nodes():
        header = _header(node)
        if header is None or not _is_ours(header, machine):
            continue
        if not isinstance(node, (ast.For, ast.With)):
            continue
        conditions = machine.conditions(node)
        is_open, first, last = _numbers(header)
        may_break = any(
            isinstance(below, (ast.Break, ast.Return)) for below in machine.block.tree.walk(node)
        )
        found.append(StepLoop(node, header, conditions, is_open, first, last, may_break))
    return sorted(found, key=lambda loop: (loop.node.lineno, loop.node.col_offset))


def run_of(block: Block) -> Block | None:
    """Return the run that a block is part of, None if it is not in one of this file."""
    current: Block | None = block
    while current is not None and not current.is_run:
        if current.kind not in ("invoke", "backward"):
            return None
        current = current.parent
    return current


def _header(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.For) and is_steps(node.iter):
        return node.iter
    if isinstance(node, ast.With):
        for item in node.items:
            if is_steps(item.context_expr):
                return item.context_expr
    return None


def _is_ours(header: ast.expr, machine: Machine) -> bool:
    """Return whether a loop's header belongs to a tracer or a module: `<tracer>.iter[...]`."""
    owner = header.value if isinstance(header, ast.Subscript) else header
    owner = owner.func if isinstance(owner, ast.Call) else owner
    if not isinstance(owner, ast.Attribute):
        return False
    value = owner.value
    if isinstance(value, ast.Name) and value.id in machine.tracers():
        return True
    return machine.resolve(value) is not None


def _numbers(header: ast.expr) -> tuple[bool, int | None, int | None]:
    """Return `is_open`, `first` and `last` of a loop, given its header."""
    if isinstance(header, ast.Call):
        return True, 0, None
    if not isinstance(header, ast.Subscript):
        return False, None, None
    key = header.slice
    if isinstance(key, ast.Slice):
        start = 0 if key.lower is None else _constant(key.lower)
        if key.upper is None:
            return True, start, None
        stop, stride = _constant(key.upper), 1 if key.step is None else _constant(key.step)
        if start is None or stop is None or not stride or stop <= start or stride < 1:
            return False, None, None
        return False, start, range(start, stop, stride)[-1]
    if isinstance(key, (ast.List, ast.Tuple)):
        numbers = [_constant(one) for one in key.elts]
        known = [number for number in numbers if number is not None]
        if not known or len(known) != len(numbers):
            return False, None, None
        return False, known[0], known[-1]
    number = _constant(key)
    return False, number, number


def _constant(node: ast.expr) -> int | None:
    is_number = isinstance(node, ast.Constant) and type(node.value) is int
    return node.value if is_number and isinstance(node, ast.Constant) else None  # type: ignore[return-value]
