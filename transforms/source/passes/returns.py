"""`return` in an intervention function, or in a block that is the last of its function.

This:

    return model.lm_head.output

becomes:

    yield ("end", model.lm_head.output)

A machine ends with a request, not by leaving its generator, so that its frame still exists and the
driver can take the block's names from it.

In a block `return` is accepted only without a value, and only if the block is the last statement
of its function, so that ending the block ends the function; others are refused (`unsupported`).
"""

from __future__ import annotations

import libcst as cst

from ... import requests
from .. import emit
from .common import RequestPass


class Returns(RequestPass):
    """Replace each `return` by the request that ends the machine."""

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        # the `return` of a function generated from a comprehension returns to the block
        return False

    def leave_Return(
        self, original_node: cst.Return, updated_node: cst.Return
    ) -> cst.BaseSmallStatement:
        values = [] if updated_node.value is None else [updated_node.value]
        return cst.Expr(emit.request(requests.END, *values, statement=True))
