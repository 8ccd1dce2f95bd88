"""Reads of model values.

This:

    h = model.transformer.h[3].output

becomes:

    h = (yield ("read", model.transformer.h[3], "output"))

Any attribute named like a port is rewritten, since the text does not say whether the object is a
module. For another object the driver answers with `getattr`.
"""

from __future__ import annotations

import libcst as cst

from ... import requests
from ...spans import Origins
from .. import emit
from .common import RequestPass, is_port, stored


class Reads(RequestPass):
    """Replace each load of a port by a request; leave a port that is stored or deleted."""

    def __init__(self, origins: Origins) -> None:
        super().__init__(origins)
        # targets found on the way down, before `leave_Attribute` sees them
        self._stored: set[cst.CSTNode] = set()

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        self._stored.update(stored(node.target))

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        self._stored.update(stored(node.target))

    def visit_AugAssign(self, node: cst.AugAssign) -> None:
        self._stored.update(stored(node.target))

    def visit_For(self, node: cst.For) -> None:
        self._stored.update(stored(node.target))

    def visit_AsName(self, node: cst.AsName) -> None:
        self._stored.update(stored(node.name))

    def visit_MatchValue(self, node: cst.MatchValue) -> bool:
        # a pattern cannot contain a yield; the access in `case box.output:` is carried
        return False

    def visit_Del(self, node: cst.Del) -> None:
        self._stored.update(stored(node.target))

    def leave_Attribute(
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.BaseExpression:
        if not is_port(original_node) or original_node in self._stored:
            return updated_node
        port = emit.string(updated_node.attr.value)
        return emit.request(requests.READ, updated_node.value, port)
