"""Names of the enclosing function that another function may rebind while the block runs.

This, if a nested function next to the block declares `nonlocal count`:

    tick()
    seen = count

becomes:

    tick()
    seen = _nns_outer("count")

A block starts with the values that the names around it have at its entry. A function that the
block calls can rebind a name of the enclosing function by `nonlocal`, and the value from the entry
would be stale. So each read of such a name is a lookup in the frame of the enclosing function.
"""

from __future__ import annotations

import libcst as cst

from ... import names
from ...spans import Origins
from .. import emit
from .common import Pass, stored


class ReboundNames(Pass):
    """Replace reads of the given names by lookups in the enclosing function's frame."""

    def __init__(self, origins: Origins, rebound: frozenset[str]) -> None:
        super().__init__(origins)
        self._rebound = rebound
        # nodes that do not read a variable: attributes, keywords, parameters, targets
        self._kept: set[cst.CSTNode] = set()

    def visit_Attribute(self, node: cst.Attribute) -> None:
        self._kept.add(node.attr)

    def visit_Arg(self, node: cst.Arg) -> None:
        if node.keyword is not None:
            self._kept.add(node.keyword)

    def visit_Param(self, node: cst.Param) -> None:
        self._kept.add(node.name)

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        self._kept.update(stored(node.target))

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        if original_node.value not in self._rebound or original_node in self._kept:
            return updated_node
        return emit.call(emit.name(names.OUTER), emit.string(original_node.value)).with_changes(
            lpar=updated_node.lpar, rpar=updated_node.rpar
        )
