"""`return` out of a decorated function.

This:

    return model.lm_head.output

becomes:

    yield ("end", model.lm_head.output)

A machine comes to its end with a request, not by leaving its generator, so that its names can
still be looked at. In a block `return` has no value, and the block is the last statement of its
function, so that its end is the function's; any other is refused.
"""

from __future__ import annotations

import libcst as cst

from ... import requests
from .. import emit
from .common import RequestPass


class Returns(RequestPass):
    """Turn each `return` into the request that ends the machine."""

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        # a generated function returns to the function itself
        return False

    def leave_Return(
        self, original_node: cst.Return, updated_node: cst.Return
    ) -> cst.BaseSmallStatement:
        values = [] if updated_node.value is None else [updated_node.value]
        return cst.Expr(emit.request(requests.END, *values, statement=True))
