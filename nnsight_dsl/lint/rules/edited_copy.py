"""A copy of a value is edited and never read.

`layer.output.clone()` makes a new tensor, which the model does not use. An edit of the copy has an
effect on the model only if the copy is assigned to the port.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output.clone()
        hidden[:, -1] = 0
        logits = model.lm_head.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output.clone()
        hidden[:, -1] = 0
        model.transformer.h[1].output = hidden
        logits = model.lm_head.output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from nnsight_dsl.transforms.source.plain import is_known_expression

from ..accesses import Machine
from ..analysis import File
from ..diagnostics import WARNING, Finding
from ..held_values import access_of, assignment_of
from .rebinding_without_effect import may_look
from .write_too_late import edited

CODE = "NNS305"
SEVERITY = WARNING


def check(file: File) -> Iterator[Finding]:
    """Find edits of copies that no other statement reads."""
    for machine in file.machines():
        seen = set()
        for node in machine.block.nodes():
            name = edited(node)
            if name is None or name.id in seen or not isinstance(node, ast.stmt):
                continue
            copied = assignment_of(machine, name)
            if copied is None or not _is_copy(machine, copied.value):
                continue
            if _is_without_effect(machine, name.id):
                seen.add(name.id)
                yield Finding(
                    node,
                    f"{name.id!r} is a copy, and nothing reads it but its edits, so the model goes "
                    "on with its own value; edit that, or assign the copy to the port",
                )


def _is_copy(machine: Machine, value: ast.expr) -> bool:
    """Return whether a value is `<access>.clone()`, possibly also detached or indexed."""
    has_copied = False
    while True:
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and not value.args:
            if value.func.attr not in ("clone", "detach"):
                return False
            has_copied = has_copied or value.func.attr == "clone"
            value = value.func.value
        elif isinstance(value, ast.Subscript) and access_of(machine, value) is None:
            value = value.value
        else:
            return has_copied and access_of(machine, value) is not None


def _is_without_effect(machine: Machine, name: str) -> bool:
    """Return whether a name is only bound once and edited, but not read."""
    inside: set[int] = set()
    for node in machine.block.nodes():
        target = edited(node)
        if target is None or target.id != name:
            continue
        if isinstance(node, (ast.Assign, ast.AugAssign)) and is_known_expression(node.value):
            inside.update(id(below) for below in ast.walk(node))
    binders = 0
    for below in machine.block.tree.walk(machine.block.function()):
        if isinstance(below, ast.Name) and below.id == name:
            binders += isinstance(below.ctx, ast.Store) and id(below) not in inside
            if isinstance(below.ctx, ast.Load) and id(below) not in inside:
                return False
        elif may_look(below, name):
            return False
    return binders == 1
