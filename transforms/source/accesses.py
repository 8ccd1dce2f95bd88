"""The states of a block: all accesses at which it may wait for the model.

The states are listed from the user's syntax tree, in the order of evaluation as far as the text
determines it. In

    hidden = model.transformer.h[3].output
    model.lm_head.output = f(hidden)

they are a read of `model.transformer.h[3].output` and a write of `model.lm_head.output`. A state
has the path of its module if the text spells it out; the runtime uses the paths to know in advance
which modules a block can ask for. A computed index is None in the path, and a computed module
(`pick(model).output`) has no root.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..requests import PORTS, READ, SKIP, WRITE

PathItem = str | int | None
"""An attribute name, an index, or None for a computed index."""


@dataclass(frozen=True, slots=True)
class State:
    """One access in a block.

    Attributes:
        number: position in the block's order of evaluation, from 0.
        line: line in the user's file.
        column: column in bytes, from 0.
        text: the source text of the access.
        kind: `"read"`, `"write"`, or `"skip"` of an operation whose path is spelled out.
        port: one of `requests.PORTS`, or `"skip"`.
        root: the name the path starts from, None if the module is computed.
        path: attribute names and indices from the root to the module.
    """

    number: int
    line: int
    column: int
    text: str
    kind: str
    port: str
    root: str | None
    path: tuple[PathItem, ...]


def static_path(node: ast.expr) -> tuple[str, tuple[PathItem, ...]] | None:
    """Split `model.h[3].mlp` into `("model", ("h", 3, "mlp"))`; None for other expressions."""
    path: list[PathItem] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute) and node.attr not in PORTS:
            path.append(node.attr)
        elif isinstance(node, ast.Subscript):
            path.append(_index(node.slice))
        else:
            return None
        node = node.value
    return node.id, tuple(reversed(path))


def _index(node: ast.expr) -> int | str | None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, str):
        return node.value  # type: ignore[return-value]
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and type(node.operand.value) is int
    ):
        return -node.operand.value
    return None


def _written_port(target: ast.expr) -> ast.Attribute | None:
    while isinstance(target, ast.Subscript):
        target = target.value
    return target if isinstance(target, ast.Attribute) and target.attr in PORTS else None


def _targets(statement: ast.stmt) -> Sequence[ast.expr]:
    if isinstance(statement, ast.Assign):
        return statement.targets
    if isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        return [statement.target]
    return []


def _skipped(node: ast.AST) -> ast.Attribute | None:
    """Return the node `m.source.op.skip` if `node` is a call of it, else None.

    The skip of a module needs no state, since the calls of modules are always intercepted; an
    operation is intercepted only if a state asks for it.
    """
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    found = static_path(node.func.value) if node.func.attr == SKIP else None
    return node.func if found is not None and "source" in found[1] else None


def _accesses(body: Sequence[ast.stmt]) -> Iterator[tuple[tuple[int, ...], ast.Attribute, str]]:
    writes: dict[ast.Attribute, tuple[int, ...]] = {}
    augmented: set[ast.Attribute] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.stmt):
                for target in _targets(node):
                    port = _written_port(target)
                    if port is not None:
                        writes[port] = (node.end_lineno or 0, node.end_col_offset or 0, 1)
                        if isinstance(node, ast.AugAssign):
                            augmented.add(port)
    for statement in body:
        for node in ast.walk(statement):
            skipped = _skipped(node)
            if skipped is not None:
                # a skip takes effect at the end of its call, when its argument has been evaluated
                end = node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
                yield (end[0] or 0, end[1] or 0, 1), skipped, SKIP
            elif isinstance(node, ast.Attribute) and node.attr in PORTS:
                here = (node.end_lineno or 0, node.end_col_offset or 0, 0)
                if node not in writes and not isinstance(node.ctx, ast.Load):
                    yield here, node, WRITE
                elif node not in writes or node in augmented:
                    yield here, node, READ
                if node in writes:
                    yield writes[node], node, WRITE


def states_of(body: Sequence[ast.stmt], lines: Sequence[str]) -> tuple[State, ...]:
    """List the accesses of a block in the order in which its text evaluates them."""
    states = []
    ordered = sorted(_accesses(body), key=lambda access: access[0])
    for number, (_, node, kind) in enumerate(ordered):
        root, path = static_path(node.value) or (None, ())
        text = _text(node, lines)
        states.append(
            State(
                number,
                node.lineno,
                node.col_offset,
                text,
                kind,
                node.attr,
                root,
                path,
            )
        )
    return tuple(states)


def _text(node: ast.Attribute, lines: Sequence[str]) -> str:
    if node.lineno == node.end_lineno and node.lineno <= len(lines):
        line = lines[node.lineno - 1].encode()
        return line[node.col_offset : node.end_col_offset].decode(errors="replace")
    return ast.unparse(node)
