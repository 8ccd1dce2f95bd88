"""Writes of model values, whole or in part.

This:

    model.transformer.h[5].output = h * 2
    model.transformer.h[6].output[0] = h
    model.transformer.h[7].output += v

becomes:

    yield ("write", h * 2, model.transformer.h[5], "output")
    yield ("element", h, model.transformer.h[6].output, model.transformer.h[6], "output",
           _nns_key[0])
    yield ("write", _nns_inplace.iadd(model.transformer.h[7].output, v),
           model.transformer.h[7], "output")

The loads that remain here are replaced by requests in the next pass.

The operands keep Python's order of evaluation: the right side of an assignment first, then the
container, then the indices. A write of an element carries the container and the index path,
because the driver treats containers differently at run time: a tuple is rebuilt with the new
element, a tensor is edited in place.

Only one level of indices is lowered in an augmented assignment. In `m.output[0][:, -1] += v` plain
Python reads the port and sets the item of the element, which is already right.
"""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from ... import names, requests
from .. import emit
from .common import RequestPass, has_names, is_port, is_pure

_INPLACE: dict[type[cst.BaseAugOp], str] = {
    cst.AddAssign: "iadd",
    cst.SubtractAssign: "isub",
    cst.MultiplyAssign: "imul",
    cst.DivideAssign: "itruediv",
    cst.FloorDivideAssign: "ifloordiv",
    cst.ModuloAssign: "imod",
    cst.PowerAssign: "ipow",
    cst.MatrixMultiplyAssign: "imatmul",
    cst.BitAndAssign: "iand",
    cst.BitOrAssign: "ior",
    cst.BitXorAssign: "ixor",
    cst.LeftShiftAssign: "ilshift",
    cst.RightShiftAssign: "irshift",
}


def _port_and_path(
    target: cst.CSTNode,
) -> tuple[cst.Attribute, list[Sequence[cst.SubscriptElement]]] | None:
    """Split `m.output[0]["k"]` into the port and its index path; None for any other target."""
    path: list[Sequence[cst.SubscriptElement]] = []
    while isinstance(target, cst.Subscript):
        path.insert(0, target.slice)
        target = target.value
    if not isinstance(target, cst.Attribute) or not is_port(target):
        return None
    return target, path


class Writes(RequestPass):
    """Replace assignments to a port, or to an index path of one, by requests."""

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        return updated_node.with_changes(body=self._rewritten(updated_node.body))

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        return updated_node.with_changes(body=self._rewritten(updated_node.body))

    def _rewritten(self, body: Sequence[cst.BaseSmallStatement]) -> list[cst.BaseSmallStatement]:
        rewritten: list[cst.BaseSmallStatement] = []
        for small in body:
            if isinstance(small, cst.Assign):
                rewritten.extend(self._assign(small))
            elif isinstance(small, cst.AugAssign):
                rewritten.extend(self._augmented(small))
            else:
                rewritten.append(small)
        return rewritten

    def _assign(self, node: cst.Assign) -> list[cst.BaseSmallStatement]:
        split = [_port_and_path(target.target) for target in node.targets]
        if not any(split):
            return [node]
        span = self.origins.span_of(node)
        value = node.value
        body: list[cst.BaseSmallStatement] = []
        if len(node.targets) > 1:
            # a = m.output = v: the value is computed once and assigned from left to right
            temp = emit.name(names.TEMP_VALUE)
            body.append(cst.Assign([cst.AssignTarget(temp)], value))
            value = temp
        for target, found in zip(node.targets, split, strict=True):
            if found is None:
                body.append(cst.Assign([target], value))
            elif found[1]:
                load, place = self._load(found[0])
                port, indices = found
                keys = [_key(index) for index in indices]
                body.append(cst.Expr(self._element(value, place, port, keys, load)))
                body.extend(_released(place))
            else:
                body.append(cst.Expr(_write(value, found[0])))
        if len(node.targets) > 1:
            body.append(cst.Del(emit.name(names.TEMP_VALUE)))
        for small in body:
            self.origins.keep(small, span)
        return body

    def _augmented(self, node: cst.AugAssign) -> list[cst.BaseSmallStatement]:
        found = _port_and_path(node.target)
        operator = _INPLACE.get(type(node.operator))
        if found is None or operator is None:
            return [node]
        port, indices = found
        inplace = emit.attribute(emit.name(names.INPLACE), operator)
        # the value may rebind a name that the target or an index starts from
        may_rebind = not is_pure(node.value)
        load, place = self._load(port, is_kept=may_rebind)
        body: list[cst.BaseSmallStatement] = []
        path = [_kept(index, number, may_rebind=may_rebind) for number, index in enumerate(indices)]
        if path:
            temp = emit.name(names.TEMP_VALUE)
            held = cst.NamedExpr(temp, load, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            before: cst.BaseExpression = held
            for index, _ in path:
                before = cst.Subscript(before, index)
            value = emit.call(inplace, before, node.value)
            keys = [key for _, key in path]
            body.append(cst.Expr(self._element(value, place, port, keys, temp)))
            ours = [names.TEMP_VALUE, *(key.value for key in keys if isinstance(key, cst.Name))]
            body.extend(cst.Del(emit.name(one)) for one in ours)
        else:
            new = emit.call(inplace, load, node.value)
            body.append(cst.Expr(_write(new, port.with_changes(value=place))))
        body.extend(_released(place))
        for small in body:
            self.origins.keep(small, self.origins.span_of(node))
        return body

    def _load(
        self, port: cst.Attribute, *, is_kept: bool = False
    ) -> tuple[cst.Attribute, cst.BaseExpression]:
        """Return the port to be read, and an expression for its module to be used afterwards.

        A module whose expression cannot be evaluated twice is kept in a temporary name. `is_kept`
        forces this.
        """
        module = emit.expression(port.value.deep_clone())
        self.origins.keep(module, self.origins.span_of(port.value))
        if not is_kept and is_pure(port.value):
            load = port.with_changes(value=module)
            place = emit.expression(port.value.deep_clone())
        else:
            temp = emit.name(names.TEMP_PLACE)
            load = port.with_changes(value=emit.enclosed(cst.NamedExpr(temp, module)))
            place = emit.name(names.TEMP_PLACE)
        self.origins.keep(load, self.origins.span_of(port))
        self.origins.keep(place, self.origins.span_of(port.value))
        return load, place

    def _element(
        self,
        value: cst.BaseExpression,
        place: cst.BaseExpression,
        port: cst.Attribute,
        keys: Sequence[cst.BaseExpression],
        container: cst.BaseExpression,
    ) -> cst.Yield:
        port_name = emit.string(port.attr.value)
        return emit.request(
            requests.ELEMENT, value, container, place, port_name, *keys, statement=True
        )


def _kept(
    index: Sequence[cst.SubscriptElement], number: int, *, may_rebind: bool
) -> tuple[Sequence[cst.SubscriptElement], cst.BaseExpression]:
    """Return an index as it stands between brackets for the read, and the key for the write.

    An index that may differ the second time is kept in a generated name.
    """
    is_same = all(is_pure(part) and not (may_rebind and has_names(part)) for part in index)
    if is_same:
        return index, _key(index)
    temp = emit.name(f"{names.TEMP_INDEX}_{number}")
    kept = emit.enclosed(cst.NamedExpr(temp, _key(index)))
    return [cst.SubscriptElement(cst.Index(kept))], temp


def _key(index: Sequence[cst.SubscriptElement]) -> cst.Subscript:
    return cst.Subscript(emit.name(names.KEY), index)


def _released(place: cst.BaseExpression) -> list[cst.BaseSmallStatement]:
    """Delete the temporary name of a module, if `_load` made one."""
    is_ours = isinstance(place, cst.Name) and place.value == names.TEMP_PLACE
    return [cst.Del(emit.name(names.TEMP_PLACE))] if is_ours else []


def _write(value: cst.BaseExpression, port: cst.Attribute) -> cst.Yield:
    port_name = emit.string(port.attr.value)
    return emit.request(requests.WRITE, value, port.value, port_name, statement=True)
