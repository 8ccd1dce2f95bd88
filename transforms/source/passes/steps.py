"""Loops over generation steps, in their `for` and in their `with` form.

This:

    for step in tracer.iter[1:3]:
        logits.append(model.lm_head.output)

becomes:

    _nns_steps_0 = yield ("steps", tracer.iter[1:3])
    try:
        while (yield ("step", _nns_steps_0)):
            try:
                step = _nns_steps_0.value
                logits.append(model.lm_head.output)
            except _nns_steps_0.over:
                pass
    finally:
        _nns_steps_0.close()

The condition of the `while` waits for the next step to begin, so that n steps run the body n
times. `with tracer.iter[1:3] as step:` and `with tracer.all():` become the same loop. `close`
restores the machine's previous step, also when the loop is left by `break` or an exception.

`over` is the exception raised in a round that waits for a value which can no longer come. In a run
with a single forward of the root module, round k means the k-th visit to each location, and
locations may have different numbers of visits: the loop ends with the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from ... import names, requests
from ...spans import Origins
from .. import emit
from .common import RequestPass


def is_steps(node: cst.BaseExpression) -> bool:
    """Return whether an expression is `<anything>.iter[...]` or `<anything>.all()`."""
    if isinstance(node, cst.Subscript):
        return isinstance(node.value, cst.Attribute) and node.value.attr.value == "iter"
    return (
        isinstance(node, cst.Call)
        and not node.args
        and isinstance(node.func, cst.Attribute)
        and node.func.attr.value == "all"
    )


class Steps(RequestPass):
    """Replace loops over steps by loops that wait for each step to begin."""

    def __init__(self, origins: Origins) -> None:
        super().__init__(origins)
        self._count = 0

    def leave_For(
        self, original_node: cst.For, updated_node: cst.For
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        if updated_node.asynchronous is not None or not is_steps(updated_node.iter):
            return updated_node
        return cst.FlattenSentinel(
            self._loop(
                original_node,
                updated_node.iter,
                updated_node.target,
                emit.statements_of(updated_node.body),
                updated_node.orelse,
            )
        )

    def leave_With(
        self, original_node: cst.With, updated_node: cst.With
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        items = updated_node.items
        index = next((i for i, item in enumerate(items) if is_steps(item.item)), None)
        if index is None:
            return updated_node
        body = emit.statements_of(updated_node.body)
        if index + 1 < len(items):
            inner = updated_node.with_changes(items=_items(items[index + 1 :]), leading_lines=[])
            self.origins.keep(inner, self.origins.span_of(original_node))
            body = [self.leave_With(original_node, inner)]  # type: ignore[list-item]
            if isinstance(body[0], cst.FlattenSentinel):
                body = list(body[0])
        asname = items[index].asname
        target = None if asname is None else asname.name
        loop = self._loop(original_node, items[index].item, target, body, None)
        if index == 0:
            return cst.FlattenSentinel(loop)
        return updated_node.with_changes(items=_items(items[:index]), body=emit.block(loop))

    def _loop(
        self,
        origin: cst.CSTNode,
        spec: cst.BaseExpression,
        target: cst.BaseExpression | None,
        body: Sequence[cst.BaseStatement],
        orelse: cst.Else | None,
    ) -> list[cst.BaseStatement]:
        steps = f"{names.TEMP_STEPS}_{self._count}"
        self._count += 1
        head = emit.assign(emit.name(steps), emit.request(requests.STEPS, spec, statement=True))
        bound: list[cst.BaseStatement] = []
        if target is not None:
            bound.append(
                emit.assign(
                    emit.target(target),
                    emit.attribute(emit.name(steps), "value"),
                )
            )
        over = emit.attribute(emit.name(steps), "over")
        ended = cst.ExceptHandler(emit.block([]), over)
        whole_round = cst.Try(emit.block([*bound, *body]), [ended])
        loop = cst.While(
            emit.request(requests.STEP, emit.name(steps)), emit.block([whole_round]), orelse
        )
        close = emit.statement(emit.call(emit.attribute(emit.name(steps), "close")))
        guarded = cst.Try(emit.block([loop]), finalbody=cst.Finally(emit.block([close])))
        header = self.origins.span_of(spec) or self.origins.span_of(origin)
        for node in (head, *bound, loop.test, close, ended, over):
            self.origins.keep(node, header)
        for whole in (loop, whole_round, guarded):
            self.origins.keep(whole, self.origins.span_of(origin))
        return [head, guarded]


def _items(items: Sequence[cst.WithItem]) -> list[cst.WithItem]:
    return [*items[:-1], items[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]
