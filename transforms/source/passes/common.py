"""What all passes share: keeping origins, and knowing where a request may not stand.

A `yield` belongs to the function it stands in. Inside a lambda, a nested function, a class body
or a generator expression it would change what that code is, so the passes that introduce one do
not go in there; neither do they go into an f-string, whose quotes cannot be nested before
Python 3.12. An access in such a place is served all the same: it is carried (see
`nnsight_dsl.runtime.machines.machine`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import libcst as cst

from ...names import GENERATED
from ...requests import PORTS
from ...spans import Origins
from .. import emit

_Comprehension = TypeVar(
    "_Comprehension", cst.GeneratorExp, cst.ListComp, cst.SetComp, cst.DictComp
)


class Pass(cst.CSTTransformer):
    """A rewrite that keeps, for each node it returns, where the node came from."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self.origins = origins

    def on_leave(  # type: ignore[override]
        self, original_node: cst.CSTNode, updated_node: cst.CSTNode
    ) -> cst.CSTNode | cst.RemovalSentinel | cst.FlattenSentinel[cst.CSTNode]:
        span = self.origins.span_of(original_node)
        self.origins.keep(updated_node, span)
        result = super().on_leave(original_node, updated_node)
        nodes: Iterable[object] = result if isinstance(result, cst.FlattenSentinel) else (result,)
        for node in nodes:
            if isinstance(node, cst.CSTNode):
                self.origins.keep(node, span)
        return result


class RequestPass(Pass):
    """A pass that introduces requests, and so stays in the block's own function."""

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        return node.name.value.startswith(GENERATED)

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        return False

    def visit_FormattedString(self, node: cst.FormattedString) -> bool:
        return False

    def visit_GeneratorExp(self, node: cst.GeneratorExp) -> bool:
        return False

    def visit_ListComp(self, node: cst.ListComp) -> bool:
        return False

    def visit_SetComp(self, node: cst.SetComp) -> bool:
        return False

    def visit_DictComp(self, node: cst.DictComp) -> bool:
        return False

    def leave_GeneratorExp(
        self, original_node: cst.GeneratorExp, updated_node: cst.GeneratorExp
    ) -> cst.BaseExpression:
        return self.with_first_iterable(updated_node)

    def leave_ListComp(
        self, original_node: cst.ListComp, updated_node: cst.ListComp
    ) -> cst.BaseExpression:
        return self.with_first_iterable(updated_node)

    def leave_SetComp(
        self, original_node: cst.SetComp, updated_node: cst.SetComp
    ) -> cst.BaseExpression:
        return self.with_first_iterable(updated_node)

    def leave_DictComp(
        self, original_node: cst.DictComp, updated_node: cst.DictComp
    ) -> cst.BaseExpression:
        return self.with_first_iterable(updated_node)

    def with_first_iterable(self, node: _Comprehension) -> _Comprehension:
        """Rewrite the one part of a comprehension that is evaluated in the block's own scope."""
        clause = node.for_in
        iterable = emit.expression(clause.iter.visit(self))
        return node.with_changes(for_in=clause.with_changes(iter=iterable))


def is_port(node: cst.CSTNode) -> bool:
    """Return whether a node is `<anything>.output` or another port by its name."""
    return isinstance(node, cst.Attribute) and node.attr.value in PORTS


def stored(target: cst.CSTNode) -> list[cst.CSTNode]:
    """List the expressions that an assignment to `target` binds or sets."""
    if isinstance(target, (cst.Tuple, cst.List)):
        return [node for element in target.elements for node in stored(element.value)]
    if isinstance(target, cst.StarredElement):
        return stored(target.value)
    return [target]


class _AccessFinder(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def visit_Attribute(self, node: cst.Attribute) -> bool | None:
        if is_port(node):
            self.found = True
        return not self.found

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def visit_FormattedString(self, node: cst.FormattedString) -> bool:
        return False

    def visit_GeneratorExp(self, node: cst.GeneratorExp) -> bool:
        node.for_in.iter.visit(self)
        return False


def has_access(node: cst.CSTNode) -> bool:
    """Return whether a port is mentioned below a node where a request may stand."""
    finder = _AccessFinder()
    node.visit(finder)
    return finder.found


class _PurityFinder(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.pure = True

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.Call, cst.Await, cst.Yield, cst.NamedExpr)) or is_port(node):
            self.pure = False
        return self.pure


def is_pure(node: cst.CSTNode) -> bool:
    """Return whether an expression can be evaluated twice: no call, no access, no walrus."""
    finder = _PurityFinder()
    node.visit(finder)
    return finder.pure
