"""Blocks inside a block: the invokes of a trace, and backward passes.

This:

    with tracer.invoke("Hello") as invoker:
        hidden = model.transformer.h[0].output.save()

becomes:

    invoker = _nns_block = tracer.invoke("Hello")
    yield ("block", _nns_block, 0)

and the body becomes a separate program, number 0 among the children of this one. It starts from
the names that the outer block has bound when it reaches the `with`, so an invoke in a loop sees
the loop variable of its round.

This:

    with loss.backward(retain_graph=True):
        gradient = hidden.grad

becomes:

    _nns_left = yield ("backward", 0, loss, _nns_arguments(retain_graph=True))
    if "gradient" in _nns_left: gradient = _nns_left["gradient"]
    del _nns_left

because the driver has to make the call of `backward`, with its hooks in place, and because the
names that the inner block binds belong to the outer block afterwards.

This, in a session:

    with model.trace("Hello") as tracer:
        hidden = model.transformer.h[0].output

becomes:

    _nns_block = model.trace("Hello")
    if _nns_is_block(_nns_block):
        tracer = _nns_bound_by(_nns_block)
        _nns_left = yield ("open", 0, _nns_block)
        if "hidden" in _nns_left: hidden = _nns_left["hidden"]
        del _nns_left
    else:
        with _nns_block as tracer:
            hidden = model.transformer.h[0].output

where the `else` branch is for the `trace` or `session` method of another library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from ... import names, requests
from ...spans import Origins
from .. import emit
from ..unsupported import INNER_BLOCKS
from .common import RequestPass
from .shared import bindings
from .steps import _items

_TEMP = "_nns_block"


@dataclass(frozen=True, slots=True)
class ChildBlock:
    """The body of an inner block, before it is lowered.

    Attributes:
        origin: the `with` statement in the tree of the user's text.
        body: its statements.
        kind: the method that opens the block, as in `Program.kind`.
        in_loop: True if the block is inside a loop of the outer block, so that it may be opened
            more than once.
    """

    origin: cst.With
    body: Sequence[cst.BaseStatement]
    kind: str
    in_loop: bool


def block_kind(node: cst.BaseExpression) -> str | None:
    """Return the method name of a call that opens a block, `"invoke"` for `<anything>.invoke(...)`.

    None for other expressions.
    """
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        attr = node.func.attr.value
        return attr if attr in INNER_BLOCKS else None
    return None


class Blocks(RequestPass):
    """Replace each inner block by a request to open it, and collect the bodies."""

    def __init__(self, origins: Origins) -> None:
        super().__init__(origins)
        self.children: list[ChildBlock] = []
        # number of loops around the node being visited
        self._loops = 0

    def visit_For(self, node: cst.For) -> None:
        self._loops += 1

    def leave_For(self, original_node: cst.For, updated_node: cst.For) -> cst.BaseStatement:
        self._loops -= 1
        return updated_node

    def visit_While(self, node: cst.While) -> None:
        self._loops += 1

    def leave_While(self, original_node: cst.While, updated_node: cst.While) -> cst.BaseStatement:
        self._loops -= 1
        return updated_node

    def visit_With(self, node: cst.With) -> bool:
        # the blocks inside an inner block are children of that one, so they are not visited here
        return all(block_kind(item.item) is None for item in node.items)

    def leave_With(
        self, original_node: cst.With, updated_node: cst.With
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        items = updated_node.items
        index = next((i for i, item in enumerate(items) if block_kind(item.item)), None)
        if index is None:
            return updated_node
        body = emit.statements_of(updated_node.body)
        span = self.origins.span_of(original_node)
        if index + 1 < len(items):
            inner = updated_node.with_changes(items=_items(items[index + 1 :]), leading_lines=[])
            self.origins.keep(inner, span)
            body = [inner]
        number = len(self.children)
        statements: list[cst.BaseStatement]
        kind = block_kind(items[index].item) or ""
        self.children.append(ChildBlock(original_node, body, kind, self._loops > 0))
        if kind != "invoke":
            if kind == "backward":
                statements = self._backward(number, items[index].item, body)
            else:
                statements = self._opened(number, updated_node, index, body)
            for node in statements:
                self.origins.keep(node, self.origins.span_of(items[index].item))
            if index == 0:
                return cst.FlattenSentinel(statements)
            return updated_node.with_changes(
                items=_items(items[:index]), body=emit.block(statements)
            )
        target: cst.BaseExpression = items[index].item
        statements = []
        asname = items[index].asname
        if asname is not None:
            bound = cst.AssignTarget(emit.target(asname.name))
            temp = cst.AssignTarget(emit.name(_TEMP))
            statements.append(emit.statement(cst.Assign([temp, bound], target)))
            target = emit.name(_TEMP)
        statements.append(
            emit.statement(
                emit.request(requests.BLOCK, target, emit.integer(number), statement=True)
            )
        )
        header = self.origins.span_of(items[index].item)
        for node in statements:
            self.origins.keep(node, header)
        if index == 0:
            return cst.FlattenSentinel(statements)
        return updated_node.with_changes(items=_items(items[:index]), body=emit.block(statements))

    def _opened(
        self, number: int, node: cst.With, index: int, body: Sequence[cst.BaseStatement]
    ) -> list[cst.BaseStatement]:
        item = node.items[index]
        ours: list[cst.BaseStatement] = []
        if item.asname is not None:
            target = emit.target(item.asname.name.deep_clone())
            ours.append(emit.assign(target, emit.call(emit.name(names.BOUND_BY), emit.name(_TEMP))))
        opened = emit.request(requests.OPEN, emit.integer(number), emit.name(_TEMP), statement=True)
        ours += self._left(opened, body)
        test = emit.call(emit.name(names.IS_BLOCK), emit.name(_TEMP))
        # the body is repeated here, to be lowered as statements of the outer block
        other = node.with_changes(
            items=[item.with_changes(item=emit.name(_TEMP)), *node.items[index + 1 :]],
            leading_lines=[],
        )
        self.origins.keep(other, self.origins.span_of(node))
        branch = cst.If(test, emit.block(ours), cst.Else(emit.block([other])))
        store = emit.assign(emit.name(_TEMP), item.item)
        for part in (store, *ours):
            self.origins.keep(part, self.origins.span_of(item.item))
        return [store, branch]

    def _backward(
        self, number: int, opened: cst.BaseExpression, body: Sequence[cst.BaseStatement]
    ) -> list[cst.BaseStatement]:
        called = cst.ensure_type(opened, cst.Call)
        loss = cst.ensure_type(called.func, cst.Attribute).value
        arguments = cst.Call(emit.name(names.ARGUMENTS), called.args)
        opened = emit.request(
            requests.BACKWARD, emit.integer(number), loss, arguments, statement=True
        )
        return self._left(opened, body)

    def _left(
        self, opened: cst.Yield, body: Sequence[cst.BaseStatement]
    ) -> list[cst.BaseStatement]:
        """Run an inner block by a request, and bind the names that it has bound."""
        left = emit.name(names.TEMP_LEFT)
        statements: list[cst.BaseStatement] = [emit.assign(left, opened)]
        for name in sorted(bindings(*body)):
            index = cst.SubscriptElement(cst.Index(emit.string(name)))
            held = emit.name(names.TEMP_LEFT)
            test = cst.Comparison(emit.string(name), [cst.ComparisonTarget(cst.In(), held)])
            value = cst.Subscript(emit.name(names.TEMP_LEFT), [index])
            bind = cst.Assign([cst.AssignTarget(emit.name(name))], value)
            statements.append(cst.If(test, cst.SimpleStatementSuite([bind])))
        statements.append(emit.statement(cst.Del(emit.name(names.TEMP_LEFT))))
        return statements
