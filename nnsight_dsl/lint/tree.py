"""A syntax tree with parent links.

An `ast` node knows its children, but rules need the nodes above one: is an access inside a branch
that may not be taken, a function that runs later, or a `with pytest.raises(...)` that expects the
error? `Tree` records the parent of each node and stores all nodes in preorder, so that the nodes
below one are a slice of a list.

    tree.conditions(access, block.node).always      # True if the access is always evaluated

Building and walking a tree does not recurse, so deeply nested files are no problem here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_EXPECTING = frozenset(
    "raises warns deprecated_call suppress assertRaises assertRaisesRegex assertWarns".split()
)


class Link(NamedTuple):
    """The link from a node to its parent: the parent, its field, and the index in that field."""

    parent: ast.AST
    field: str
    position: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions under which a node is evaluated, given that the block around it is.

    Attributes:
        branches: the branches around it, outermost first, as identity of the statement and label.
        is_deferred: True if it is in a function, a lambda or a generator that runs later, or never.
        is_handled: True if an error raised there may be expected, by a `try` or a
            `with pytest.raises(...)`.
    """

    branches: tuple[tuple[int, str], ...] = ()
    is_deferred: bool = False
    is_handled: bool = False

    @property
    def always(self) -> bool:
        """Whether the node is evaluated each time the block is."""
        return not self.branches and not self.is_deferred

    def cover(self, other: Conditions) -> bool:
        """Return whether this node is evaluated in every round in which the other one is."""
        return (
            not self.is_deferred
            and not other.is_deferred
            and other.branches[: len(self.branches)] == self.branches
        )


class Tree:
    """A parsed file."""

    def __init__(self, module: ast.AST, lines: Sequence[str]) -> None:
        self.module = module
        self.lines = lines
        self._links: dict[ast.AST, Link] = {}
        self._order: list[ast.AST] = []
        self._first: dict[ast.AST, int] = {}
        self._sizes: dict[ast.AST, int] = {}
        todo = [module]
        while todo:
            node = todo.pop()
            self._first[node] = len(self._order)
            self._order.append(node)
            below: list[ast.AST] = []
            for name in node._fields:
                value = getattr(node, name, None)
                children = value if isinstance(value, list) else (value,)
                for index, child in enumerate(children):
                    if isinstance(child, ast.AST) and not isinstance(child, _SHARED):
                        self._links[child] = Link(node, name, index)
                        below.append(child)
            todo.extend(reversed(below))
        self._sizes = dict.fromkeys(self._order, 1)
        for node in reversed(self._order):
            link = self._links.get(node)
            if link is not None:
                self._sizes[link.parent] += self._sizes[node]

    def walk(self, node: ast.AST) -> list[ast.AST]:
        """Return a node and all nodes below it, in the order of the text."""
        first = self._first[node]
        return self._order[first : first + self._sizes[node]]

    def link(self, node: ast.AST) -> Link | None:
        """Return the link of a node to its parent, None for the root."""
        return self._links.get(node)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Iterate over the ancestors of a node, innermost first."""
        link = self._links.get(node)
        while link is not None:
            yield link.parent
            link = self._links.get(link.parent)

    def function_of(self, node: ast.AST) -> ast.AST:
        """Return the innermost function around a node, or the module."""
        for above in self.above(node):
            if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
                return above
        return self.module

    def conditions(self, node: ast.AST, within: ast.AST) -> Conditions:
        """Return the conditions under which a node is evaluated, given that `within` is."""
        branches: list[tuple[int, str]] = []
        is_deferred = is_handled = False
        link = self._links.get(node)
        while link is not None and link.parent is not within:
            label = _branch(link)
            if label is not None:
                branches.append((id(link.parent), label))
                is_deferred |= label == _DEFERRED
                is_handled |= label == _HANDLED
            link = self._links.get(link.parent)
        return Conditions(tuple(reversed(branches)), is_deferred, is_handled)

    def is_expected_to_fail(self, node: ast.AST) -> bool:
        """Return whether a node is in the body of a `with pytest.raises(...)` or the like."""
        link = self._links.get(node)
        while link is not None:
            is_body = isinstance(link.parent, (ast.With, ast.AsyncWith)) and link.field == "body"
            if is_body and _expects(link.parent):
                return True
            link = self._links.get(link.parent)
        return False

    def following(self, node: ast.stmt) -> Iterator[ast.stmt]:
        """Iterate over the statements after one, up to the end of its function.

        If the statement is in a loop, the statements before it in the loop, which run after it in
        the next round, are left out.
        """
        current: ast.AST = node
        while True:
            link = self._links.get(current)
            if link is None:
                return
            siblings = getattr(link.parent, link.field)
            if isinstance(siblings, list):
                yield from (
                    one for one in siblings[link.position + 1 :] if isinstance(one, ast.stmt)
                )
            if isinstance(link.parent, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                return
            current = link.parent


_SHARED = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop)
"""Nodes that the parser shares between many parents, so that they have no single parent."""
_DEFERRED = "later"
_HANDLED = "handled"


def _branch(link: Link) -> str | None:
    """Return a label for the branch of the parent that a node is in.

    None if the node is evaluated whenever its parent is.
    """
    field, index = link.field, link.position
    match link.parent:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
            return field if field in ("body", "orelse") else None
        case ast.Try() | ast.TryStar():
            if field == "body" and link.parent.handlers:
                return _HANDLED
            return None if field == "finalbody" else field
        case ast.With() | ast.AsyncWith():
            return _HANDLED if field == "body" and _expects(link.parent) else None
        case ast.Match():
            return f"case {index}" if field == "cases" else None
        case ast.BoolOp() | ast.Compare():
            return "rest" if field in ("values", "comparators") and index else None
        case ast.comprehension():
            return "element" if field == "ifs" else None
        case ast.ListComp() | ast.SetComp() | ast.DictComp():
            return "element" if field != "generators" or index else None
        case ast.GeneratorExp():
            return _DEFERRED if field != "generators" or index else None
        case ast.Lambda() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return _DEFERRED if field == "body" else None
        case ast.Assert():
            return "message" if field == "msg" else None
    return None


def _expects(node: ast.AST) -> bool:
    for item in getattr(node, "items", ()):
        call = item.context_expr
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else None
            name = call.func.id if isinstance(call.func, ast.Name) else name
            if name in _EXPECTING:
                return True
    return False


def bound_by(node: ast.AST) -> frozenset[str]:
    """Return the names that a node itself binds, without those bound by nodes below it."""
    match node:
        case ast.Name(ctx=ast.Store() | ast.Del()):
            return frozenset((node.id,))
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return frozenset((node.name,))
        case ast.arg():
            return frozenset((node.arg,))
        case ast.alias():
            return frozenset(((node.asname or node.name).split(".")[0],))
        case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar() if node.name:
            return frozenset((node.name,))
        case ast.MatchMapping() if node.rest:
            return frozenset((node.rest,))
        case ast.Global() | ast.Nonlocal():
            return frozenset(node.names)
    return frozenset()
