"""`.save()` on any object.

This:

    logits = model.lm_head.output[:, -1].save()

becomes:

    logits = _nns_save(model.lm_head.output[:, -1])

`list`, `dict`, `int` and tensors have no `save` method, and none is patched in. The call is
recognised by its text instead, in lambdas and nested functions too. If the object's type does
define a `save` method, `_nns_save` calls it.

A `save` that is not called saves nothing, which is usually a mistake. As a statement or assigned
to a name,

    logits = model.lm_head.output.save

becomes:

    logits = _nns_save_of(model.lm_head.output)

which returns the object's `save` attribute if it has one, and raises an error otherwise.
"""

from __future__ import annotations

import libcst as cst

from ... import names
from .. import emit
from .common import Pass


class Saves(Pass):
    """Replace `<expression>.save()` without arguments by a call of the injected `save`."""

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        function = updated_node.func
        if (
            updated_node.args
            or not isinstance(function, cst.Attribute)
            or function.attr.value != "save"
        ):
            return updated_node
        return emit.call(emit.name(names.SAVE), function.value).with_changes(
            lpar=updated_node.lpar, rpar=updated_node.rpar
        )

    def leave_Expr(self, original_node: cst.Expr, updated_node: cst.Expr) -> cst.Expr:
        return updated_node.with_changes(value=_without_idle_save(updated_node.value))

    def leave_Assign(self, original_node: cst.Assign, updated_node: cst.Assign) -> cst.Assign:
        return updated_node.with_changes(value=_without_idle_save(updated_node.value))

    def leave_AnnAssign(
        self, original_node: cst.AnnAssign, updated_node: cst.AnnAssign
    ) -> cst.AnnAssign:
        value = updated_node.value
        if value is None:
            return updated_node
        return updated_node.with_changes(value=_without_idle_save(value))


def _without_idle_save(value: cst.BaseExpression) -> cst.BaseExpression:
    if not isinstance(value, cst.Attribute) or value.attr.value != "save":
        return value
    return emit.call(emit.name(names.SAVE_OF), value.value).with_changes(
        lpar=value.lpar, rpar=value.rpar
    )
