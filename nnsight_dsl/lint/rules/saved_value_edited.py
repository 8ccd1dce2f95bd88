"""A saved value is changed by a later edit in place.

A saved tensor is the model's tensor, not a copy. `layer.output[:] = 0` edits that tensor, so a name
that was saved before the edit has the edited value, not the one that was read.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        before = model.transformer.h[1].output.save()
        model.transformer.h[1].output[:] = 0

Right:

    with model.trace("The Eiffel Tower is in"):
        before = model.transformer.h[1].output.clone().save()
        model.transformer.h[1].output[:] = 0
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from ..accesses import Access, Machine, end_of
from ..analysis import File
from ..diagnostics import WARNING, Finding, Insertion
from ..held_values import access_of, called_name

CODE = "NNS302"
SEVERITY = WARNING


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A part of a port's value: the access, the indices as text, and the whole expression."""

    access: Access
    indices: tuple[str, ...]
    node: ast.expr


def check(file: File) -> Iterator[Finding]:
    """Find saved values that a later edit in place at the same location changes."""
    for machine in file.machines():
        edits = list(_edits(machine))
        if not edits:
            continue
        for saved in _saved(machine):
            for edit in edits:
                if _changes(machine, saved, edit):
                    end = end_of(saved.node)
                    yield Finding(
                        saved.node,
                        f"the edit in place of line {file.line(edit.node)} changes this value "
                        "after it was saved; save a copy: .clone().save()",
                        fix=(Insertion(end[0], end[1], ".clone()"),),
                    )
                    break


def _saved(machine: Machine) -> Iterator[_Part]:
    """Yield the values that are saved unchanged."""
    for call in machine.calls:
        if called_name(call) != "save":
            continue
        value: ast.expr | None = call.args[0] if call.args else None
        if value is None and isinstance(call.func, ast.Attribute):
            value = call.func.value
        part = None if value is None else _part(machine, value)
        if part is not None and part.access.verb == "read":
            yield part


def _edits(machine: Machine) -> Iterator[_Part]:
    """Yield the edits in place: assignments to elements and augmented assignments."""
    for node in machine.block.nodes():
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target: ast.expr = node.targets[0]
            if not isinstance(target, ast.Subscript):
                continue
            part = _part(machine, target)
            # `output[0] = x` replaces an element of a tuple but edits a tensor: undecidable
            if part is not None and not _is_element(target):
                yield part
        elif isinstance(node, ast.AugAssign):
            part = _part(machine, node.target)
            if part is not None:
                yield part


def _is_element(target: ast.Subscript) -> bool:
    return isinstance(target.slice, (ast.Constant, ast.UnaryOp)) and isinstance(
        target.value, ast.Attribute
    )


def _part(machine: Machine, node: ast.expr) -> _Part | None:
    split = access_of(machine, node)
    if split is None:
        return None
    access, indices = split
    if not all(_is_view(index) for index in indices):
        return None
    spelled = tuple(ast.unparse(index) for index in indices if not _is_whole(index))
    return _Part(access, spelled, node)


def _is_view(index: ast.expr) -> bool:
    """Return whether an index gives a view of the tensor, rather than a copy or an unknown."""
    if isinstance(index, ast.Tuple):
        return all(_is_view(one) for one in index.elts)
    return all(
        isinstance(below, (ast.Slice, ast.Constant, ast.UnaryOp, ast.USub, ast.expr_context))
        for below in ast.walk(index)
    )


def _is_whole(index: ast.expr) -> bool:
    is_slice = isinstance(index, ast.Slice) and not (index.lower or index.upper or index.step)
    return is_slice or (isinstance(index, ast.Constant) and index.value is ...)


def _changes(machine: Machine, saved: _Part, edit: _Part) -> bool:
    first, second = saved.access, edit.access
    if (first.model, first.path, first.port) != (second.model, second.path, second.port):
        return False
    if not (machine.follows(first, second) and first.conditions == second.conditions):
        return False
    shorter = min(len(saved.indices), len(edit.indices))
    if saved.indices[:shorter] != edit.indices[:shorter]:
        return False
    return not any(
        one.verb == "write"
        and (one.model, one.path, one.port) == (first.model, first.path, first.port)
        and first.number < one.number < second.number
        and _is_replacement(machine, one)
        for one in machine.accesses
    )


def _is_replacement(machine: Machine, access: Access) -> bool:
    """Return whether a write replaces the whole value, rather than editing it."""
    return isinstance(access.node.ctx, ast.Store)
