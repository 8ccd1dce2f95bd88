"""Name bindings: the statement from which a name gets its value where it is read.

    layer = model.transformer.h[3]
    with model.trace("Hello"):
        hidden = layer.output          # `layer` is bound by the first line

The analysis is conservative. It returns a statement only if no other one can have bound the name
in between, such as a branch that may be taken or a later round of a loop; otherwise the answer is
`UNCLEAR`, and rules report nothing.
"""

from __future__ import annotations

import ast
from bisect import bisect_left
from collections import Counter
from typing import Final

from .tree import Tree, bound_by

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Unclear:
    """The type of the sentinel `UNCLEAR`: several statements may have bound the name."""


UNCLEAR: Final = Unclear()


class Bindings:
    """The bindings of a file."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._counts: dict[ast.AST, Counter[str]] = {}
        self._binders: dict[tuple[ast.AST, str], dict[str, list[int]]] = {}

    def binder(self, name: ast.Name) -> ast.stmt | Unclear | None:
        """Return the statement that has bound a name where it is read.

        None if the name is not bound in its function, or is an argument of the function.
        """
        node: ast.AST = name
        link = self._tree.link(node)
        while link is not None and not isinstance(node, ast.stmt):
            node = link.parent
            if _is_scope_of(node, name.id):
                return UNCLEAR
            link = self._tree.link(node)
        if any(
            isinstance(one, ast.NamedExpr) and name.id in bound_by(one.target)
            for one in self._tree.walk(node)
        ):
            return UNCLEAR
        while link is not None:
            before = self._before(link.parent, link.field, link.position, name.id)
            if before is not None:
                return before
            node = link.parent
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module, ast.Lambda)):
                return None
            if isinstance(node, ast.stmt) and self._count(node)[name.id]:
                own = sum(1 for one in _header(node) if name.id in bound_by(one))
                return node if own == self._count(node)[name.id] == 1 else UNCLEAR
            link = self._tree.link(node)
        return None

    def _before(self, parent: ast.AST, field: str, index: int, name: str) -> ast.stmt | None:
        """Return the last statement of a list, before a position, that binds a name."""
        statements = getattr(parent, field)
        if not isinstance(statements, list):
            return None
        key = (parent, field)
        if key not in self._binders:
            found: dict[str, list[int]] = {}
            for number, statement in enumerate(statements):
                for bound in self._count(statement):
                    found.setdefault(bound, []).append(number)
            self._binders[key] = found
        numbers = self._binders[key].get(name, [])
        position = bisect_left(numbers, index)
        found_one: ast.stmt | None = statements[numbers[position - 1]] if position else None
        return found_one

    def _count(self, node: ast.AST) -> Counter[str]:
        found = self._counts.get(node)
        if found is None:
            found = self._counts[node] = Counter(
                name for below in self._tree.walk(node) for name in bound_by(below)
            )
        return found


def _header(node: ast.AST) -> list[ast.AST]:
    """Return the nodes of a statement's header that bind names before its body runs."""
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return list(ast.walk(node.target))
    if isinstance(node, (ast.With, ast.AsyncWith)):
        targets = [item.optional_vars for item in node.items if item.optional_vars is not None]
        return [below for target in targets for below in ast.walk(target)]
    return []


def _is_scope_of(node: ast.AST, name: str) -> bool:
    """Return whether an expression is a nested scope that binds a name."""
    if isinstance(node, _COMPREHENSIONS):
        return any(
            name in bound_by(below) for one in node.generators for below in ast.walk(one.target)
        )
    if isinstance(node, ast.Lambda):
        return any(name in bound_by(below) for below in ast.walk(node.args))
    return False
