"""Comprehensions that read model values.

This:

    norms = [model.layers[i].output.norm() for i in range(6, 9)]

becomes:

    def _nns_comprehension_0(_nns_items):
        _nns_result = []
        for i in _nns_items:
            _nns_result.append(model.layers[i].output.norm())
        return _nns_result
    norms = (yield from _nns_comprehension_0(range(6, 9)))

A comprehension is a nested scope whose first iterable is evaluated outside; a function that takes
that iterable as its argument behaves the same. The definition of the function goes to the head of
the block, where it evaluates nothing.

Three kinds of comprehensions are left unchanged, and their accesses are carried: those with a
walrus, which binds a name of the block; those with `next`, whose `StopIteration` would leave a
generator function as a `RuntimeError`; and asynchronous ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import libcst as cst

from ...names import GENERATED
from ...spans import Origins
from .. import emit
from .common import RequestPass, has_access

_Comp = TypeVar("_Comp", cst.ListComp, cst.SetComp, cst.DictComp)
_ITEMS = "_nns_items"
_RESULT = "_nns_result"

LABELS = {"list": "<listcomp>", "set": "<setcomp>", "dict": "<dictcomp>"}


def label_of(function_name: str) -> str | None:
    """Return the scope name that Python uses for a comprehension, given its generated function."""
    if not function_name.startswith(GENERATED):
        return None
    return LABELS[function_name.removeprefix(GENERATED).split("_")[0]]


class _HindranceFinder(cst.CSTVisitor):
    """Find expressions that would change their meaning in a separate function."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
        self.found = True

    def visit_Call(self, node: cst.Call) -> None:
        # a StopIteration that leaves a generator function becomes a RuntimeError
        if isinstance(node.func, cst.Name) and node.func.value == "next":
            self.found = True

    def visit_CompFor(self, node: cst.CompFor) -> None:
        if node.asynchronous is not None:
            self.found = True


def _can_be_lowered(node: cst.ListComp | cst.SetComp | cst.DictComp) -> bool:
    finder = _HindranceFinder()
    node.visit(finder)
    if finder.found:
        return False
    # the first iterable is outside the comprehension's scope, so an access there does not count
    clause = node.for_in.with_changes(iter=emit.name("_"))
    return has_access(node.with_changes(for_in=clause))


class Comprehensions(RequestPass):
    """Turn each comprehension with an access into a generator function and a call of it."""

    def __init__(self, origins: Origins) -> None:
        super().__init__(origins)
        # a stack: each comprehension being visited collects the functions nested in its own
        self._functions: list[list[cst.FunctionDef]] = [[]]
        self._count = 0

    @property
    def functions(self) -> list[cst.FunctionDef]:
        """The generated functions, to be put at the head of the block."""
        return self._functions[0]

    def leave_ListComp(
        self, original_node: cst.ListComp, updated_node: cst.ListComp
    ) -> cst.BaseExpression:
        def collect(node: cst.ListComp) -> cst.BaseExpression:
            append = emit.attribute(emit.name(_RESULT), "append")
            return emit.call(append, self._visited(node.elt))

        return self._lowered(original_node, "list", cst.List([]), collect)

    def leave_SetComp(
        self, original_node: cst.SetComp, updated_node: cst.SetComp
    ) -> cst.BaseExpression:
        def collect(node: cst.SetComp) -> cst.BaseExpression:
            return emit.call(emit.attribute(emit.name(_RESULT), "add"), self._visited(node.elt))

        # {*()} is an empty set even if the user has rebound the name `set`
        return self._lowered(
            original_node, "set", cst.Set([cst.StarredElement(cst.Tuple([]))]), collect
        )

    def leave_DictComp(
        self, original_node: cst.DictComp, updated_node: cst.DictComp
    ) -> cst.BaseExpression:
        def collect(node: cst.DictComp) -> cst.BaseExpression:
            # a dict display evaluates the key before the value; a subscript assignment does not
            item = cst.Dict([cst.DictElement(self._visited(node.key), self._visited(node.value))])
            return emit.call(emit.attribute(emit.name(_RESULT), "update"), item)

        return self._lowered(original_node, "dict", cst.Dict([]), collect)

    def _visited(self, node: cst.BaseExpression) -> cst.BaseExpression:
        return emit.expression(node.visit(self))

    def _lowered(
        self,
        node: _Comp,
        kind: str,
        empty: cst.BaseExpression,
        collect: Callable[[_Comp], cst.BaseExpression],
    ) -> cst.BaseExpression:
        if not _can_be_lowered(node):
            return self.with_first_iterable(node)
        number, self._count = self._count, self._count + 1
        function_name = f"{GENERATED}{kind}_{number}"
        first_iterable = self._visited(node.for_in.iter)
        self._functions.append([])
        loop = self._loop(node.for_in, emit.name(_ITEMS), lambda: emit.statement(collect(node)))
        nested: list[cst.BaseStatement] = list(self._functions.pop())
        function = emit.function(
            function_name,
            [_ITEMS],
            [
                *nested,
                emit.assign(emit.name(_RESULT), empty),
                loop,
                emit.statement(cst.Return(emit.name(_RESULT))),
            ],
        )
        span = self.origins.span_of(node)
        self.origins.keep(function, span)
        for generated in function.body.body:
            self.origins.keep(generated, span)
        self._functions[-1].append(function)
        return cst.Yield(
            cst.From(emit.call(emit.name(function_name), first_iterable)),
            lpar=[cst.LeftParen()],
            rpar=[cst.RightParen()],
        )

    def _loop(
        self,
        clause: cst.CompFor,
        iterable: cst.BaseExpression,
        innermost: Callable[[], cst.BaseStatement],
    ) -> cst.BaseStatement:
        target = emit.target(clause.target.visit(self))
        tests = [self._visited(condition.test) for condition in clause.ifs]
        inner: cst.CompFor | None = clause.inner_for_in
        body: cst.BaseStatement
        if inner is None:
            body = innermost()
        else:
            body = self._loop(inner, self._visited(inner.iter), innermost)
        span = self.origins.span_of(clause)
        self.origins.keep(body, span)
        for test in reversed(tests):
            body = cst.If(test, emit.block([body]))
            self.origins.keep(body, self.origins.span_of(test))
        loop = cst.For(target, iterable, emit.block([body]))
        self.origins.keep(loop, span)
        return loop
