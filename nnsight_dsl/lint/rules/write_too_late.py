"""A value is edited in place when everything that uses it has already run.

An edit in place affects only what is computed from the tensor afterwards. Once the block has waited
for a later module, the layers in between have used the unedited value. This is known from a
recorded run of the model: with `--model`, and at the entry of a run for models of transformers.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[0].mlp.c_fc.output
        logits = model.lm_head.output.save()
        hidden[:] = 0

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[0].mlp.c_fc.output
        hidden[:] = 0
        logits = model.lm_head.output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..accesses import Access, Machine, end_of
from ..analysis import File
from ..diagnostics import WARNING, Finding
from ..held_values import has_same_value, read_of

CODE = "NNS304"
SEVERITY = WARNING


def check(file: File) -> Iterator[Finding]:
    """Find edits of held values that come after an access later than the value's last use."""
    for machine, node, read in _edits(file):
        last = _last_use(file, read)
        passed = None if last is None else _passed(file, machine, read, node)
        if last is not None and passed is not None and passed[1] > last:
            yield Finding(
                node,
                f"everything that uses {read.location} has run when this edits it, since line "
                f"{file.line(passed[0].node)} waits for {passed[0].location}; edit it before "
                "that line",
            )


def may_find(file: File) -> bool:
    """Return whether a file has an edit of a held value after another access.

    A cheap test before the model is recorded.
    """
    return any(
        end_of(read.node) < end_of(access.node) <= (node.lineno, node.col_offset)
        for machine, node, read in _edits(file)
        for access in machine.accesses
    )


def _edits(file: File) -> Iterator[tuple[Machine, ast.stmt, Access]]:
    """Yield edits in place of held values that are not read elsewhere, with their reads."""
    for machine in file.machines():
        for node in machine.block.nodes():
            name = edited(node)
            if name is None or not isinstance(node, ast.stmt):
                continue
            read = read_of(machine, name)
            if read is not None and not _is_used_elsewhere(machine, node, name):
                yield machine, node, read


def edited(node: ast.AST) -> ast.Name | None:
    """Return the name whose tensor a statement edits in place, None for other statements."""
    target: ast.expr | None = None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0] if isinstance(node.targets[0], ast.Subscript) else None
    elif isinstance(node, ast.AugAssign):
        target = node.target
    while isinstance(target, ast.Subscript):
        target = target.value
    return target if isinstance(target, ast.Name) else None


def _last_use(file: File, read: Access) -> int | None:
    found = file.place(read)
    if found is None or read.port != "output" or read.step is None or read.step[0]:
        return None
    structure, place = found
    module = structure.modules[place]
    return module.last_use if len(module.visits) == 1 and module.output == "tensor" else None


def _passed(
    file: File, machine: Machine, read: Access, node: ast.stmt
) -> tuple[Access, int] | None:
    """Return the access served last before an edit for certain, and the tick of that."""
    best: tuple[Access, int] | None = None
    conditions = machine.conditions(node)
    for access in machine.accesses:
        found = file.place(access)
        is_before = end_of(access.node) <= (node.lineno, node.col_offset)
        if found is None or not is_before or access.model != read.model:
            continue
        if access.step != read.step or not access.conditions.cover(conditions):
            continue
        structure, place = found
        time = structure.begins(place) if access.is_early else structure.ends(place)
        if time is not None and (best is None or time > best[1]):
            best = access, time
    return best


def _is_used_elsewhere(machine: Machine, node: ast.stmt, name: ast.Name) -> bool:
    """Return whether a value is read or saved elsewhere, so that the edit has an effect there."""
    inside = {id(below) for below in ast.walk(node)}
    return any(
        isinstance(below, ast.Name)
        and isinstance(below.ctx, ast.Load)
        and id(below) not in inside
        and has_same_value(machine, name, below)
        for below in machine.block.tree.walk(machine.block.function())
    )
