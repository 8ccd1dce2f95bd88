"""Base classes of the passes: recording of origins, and the places where no request may be put.

A request is a `yield`, which belongs to the innermost function around it. Inside a lambda, a
nested function, a class body or a generator expression it would turn that code into something
else, so `RequestPass` does not enter these. Neither does it enter f-strings, in which quotes
cannot be nested before CPython 3.12. An access in such a place still works: it is *carried*, that
is, served by switching stacks (see `nnsight_dsl.runtime.machines.machine`), which is slower.

    [model.h[i].output for i in layers]             # lowered by `comprehensions`
    max(layers, key=lambda i: model.h[i].output)    # the access is carried
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
    """A transformer that records the origin of each node it returns."""

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
    """A pass that generates requests, and so does not enter nested scopes.

    It does enter functions generated from comprehensions, which are called with `yield from`.
    """

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
        """Rewrite the first iterable of a comprehension: it is evaluated in the outer scope."""
        clause = node.for_in
        iterable = emit.expression(clause.iter.visit(self))
        return node.with_changes(for_in=clause.with_changes(iter=iterable))


def is_port(node: cst.CSTNode) -> bool:
    """Return whether a node is `<anything>.output`, or an attribute named like another port."""
    return isinstance(node, cst.Attribute) and node.attr.value in PORTS


def stored(target: cst.CSTNode) -> list[cst.CSTNode]:
    """Return the names, attributes and items that an assignment to `target` stores to."""
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
    """Return whether a node contains a port in a place where a request may be put."""
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
    """Return whether an expression can be evaluated twice: it has no call, access or walrus."""
    finder = _PurityFinder()
    node.visit(finder)
    return finder.pure


class _NameFinder(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def visit_Name(self, node: cst.Name) -> None:
        self.found = True


def has_names(node: cst.CSTNode) -> bool:
    """Return whether the value of an expression depends on a name."""
    finder = _NameFinder()
    node.visit(finder)
    return finder.found
