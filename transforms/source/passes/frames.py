"""Calls that inspect their own frame: `super()`, `locals()` and `vars()`.

This:

    super().prepare(model.output)
    names = locals()

becomes:

    super(__class__, self).prepare(model.output)
    names = _nns_users(locals())

A block is compiled as a separate function, whose first argument is not `self` and whose locals
include generated names.
"""

from __future__ import annotations

import libcst as cst

from ... import names
from ...spans import Origins
from .. import emit
from .common import RequestPass


class FrameCalls(RequestPass):
    """Give `super` explicit arguments, and filter generated names out of `locals` and `vars`."""

    def __init__(self, origins: Origins, first_argument: str | None) -> None:
        super().__init__(origins)
        self._first_argument = first_argument

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        function = updated_node.func
        if updated_node.args or not isinstance(function, cst.Name):
            return updated_node
        if function.value in ("locals", "vars"):
            return emit.call(emit.name(names.USERS), updated_node)
        if function.value == "super" and self._first_argument is not None:
            args = (emit.name("__class__"), emit.name(self._first_argument))
            return emit.call(function, *args)
        return updated_node
