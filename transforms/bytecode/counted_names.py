"""Names of operations with one counter for calls and assignments, as programs for nnsight 0.8 have.

In the forward

    attention = ATTENTIONS[self.kind]
    out, weights = attention(query, key)

the assignment is `attention_0` there, and the call `attention_1`. Here they are `attention` and
`attention_0`, and stay so natively; `counted_names` has the operations by the other names. Those
are read off the text, in which calls and targets have the positions that they have in bytecode:

- a call has the dotted path of the callee, and comes after its arguments;
- a target of an assignment with one target has its path, without indices, and comes after the
  value. Targets in a tuple count if the value is a tuple of as many;
- functions inside count along.

Operators, returned values and loop variables have no such name. A target that is an attribute or an
element has no operation: it is counted, and cannot be named.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CodeType

from .operations import CALL, LOCAL, Operation, operations_of


@lru_cache(maxsize=4096)
def counted_names(code: CodeType) -> Mapping[str, Operation]:
    """Return the operations of a function by such names, in the order of evaluation.

    Without a text that fits the code, they have the names of `operations_of`.
    """
    known = operations_of(code)
    tree = _tree_of(code)
    if tree is None:
        return known
    # where they end: a call over several lines begins elsewhere in bytecode
    at = {
        (one.kind, one.end_line, one.end_column if one.kind == CALL else one.label): one
        for one in known.values()
    }
    counts: Counter[str] = Counter()
    found: dict[str, Operation] = {}
    for stem, node in _named(tree):
        name = f"{stem}_{counts[stem]}"
        counts[stem] += 1
        where: tuple[str, int | None, int | str | None]
        if isinstance(node, ast.Call):
            where = CALL, node.end_lineno, node.end_col_offset
        else:
            # two locals that one instruction sets, as from CPython 3.13 on, have one position
            where = LOCAL, node.end_lineno, node.id if isinstance(node, ast.Name) else None
        operation = at.pop(where, None)
        if operation is not None:
            found[name] = operation
    if any(one.kind == CALL for one in at.values()):
        # the text is not that of the code, or was compiled in a way unknown here
        return known
    return found


def _tree_of(code: CodeType) -> ast.stmt | None:
    """Return the syntax tree of a function with the positions of its file; None without a text."""
    try:
        lines, first = inspect.getsourcelines(code)
        # indented as it is, so that columns are those of the file
        tree = ast.parse(
            "if True:\n" + "".join(lines) if lines[0][:1].isspace() else "".join(lines)
        )
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    statement = tree.body[0]
    shift = first - 1
    if isinstance(statement, ast.If):
        statement, shift = statement.body[0], first - 2
    if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    ast.increment_lineno(statement, shift)
    return statement


def _named(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the calls and targets of a function with their names, in the order of evaluation."""
    for statement in getattr(tree, "body", ()):
        yield from _in(statement)


def _in(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        yield from _in(node.value)
        if len(node.targets) == 1:
            yield from _targets(node.targets[0], node.value)
        else:
            for target in node.targets:
                yield from _in(target)
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _in(node.value)
            yield from _targets(node.target, node.value)
        return
    for below in ast.iter_child_nodes(node):
        yield from _in(below)
    if isinstance(node, ast.Call):
        yield _path(node.func) or "call", node


def _targets(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, (ast.Tuple, ast.List)):
        items = target.elts
        is_literal = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(items)
        if is_literal and not any(isinstance(one, ast.Starred) for one in (*items, *value.elts)):  # type: ignore[attr-defined]
            for one, its_value in zip(items, value.elts, strict=True):  # type: ignore[attr-defined]
                yield from _targets(one, its_value)
        return
    yield from (found for below in ast.iter_child_nodes(target) for found in _in(below))
    stem = _path(target)
    if stem is not None:
        yield stem, target


def _path(node: ast.expr) -> str | None:
    """Spell the path of a callee or a target: from its name, or from behind a call on."""
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript):
            node = node.value
        else:
            return "_".join(reversed(names)) or None
    return "_".join([node.id, *reversed(names)])
