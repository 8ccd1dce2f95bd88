"""`.save()` on any object.

This:

    logits = model.lm_head.output[:, -1].save()

becomes:

    logits = _nns_save(model.lm_head.output[:, -1])

`list`, `dict`, `int` and the tensor class have no `save` of their own, and none is put on them:
the call is recognised in the text, also inside lambdas and nested functions. Where the object's
type has a `save` method of its own, `_nns_save` calls that.
"""

from __future__ import annotations

import libcst as cst

from ... import names
from .. import emit
from .common import Pass


class Saves(Pass):
    """Turn `<expression>.save()` without arguments into a call of the injected `save`."""

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
