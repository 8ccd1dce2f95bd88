"""A name that held a value of the model is rebound to a new value that is never used.

`hidden = layer.output` reads a tensor; `hidden = hidden * 0` makes a new tensor and binds the name
to it. The model continues with the old one. To change the model's value, assign to the port or
edit the tensor in place.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output
        hidden = hidden * 0
        logits = model.lm_head.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output
        model.transformer.h[1].output = hidden * 0
        logits = model.lm_head.output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from nnsight_dsl.transforms.source.plain import is_known_expression

from ..accesses import Machine, end_of
from ..analysis import File
from ..diagnostics import WARNING, Finding
from ..held_values import access_of, called_name, mentions

CODE = "NNS303"
SEVERITY = WARNING

_LOOKING = frozenset({"locals", "eval", "exec", "vars"})


def check(file: File) -> Iterator[Finding]:
    """Find rebindings that read the old value of the name, and whose new value is never read."""
    for machine in file.machines():
        read: dict[str, ast.Assign] = {}
        for node in machine.block.nodes():
            if not isinstance(node, ast.Assign) or len(node.targets) != 1:
                continue
            target = node.targets[0]
            if not isinstance(target, ast.Name):
                continue
            if access_of(machine, node.value) is not None:
                read[target.id] = node
            elif _is_without_effect(machine, read.get(target.id), node, target.id):
                yield Finding(
                    node,
                    f"{target.id!r} gets another value here, which nothing uses, and the model "
                    "goes on with its own; assign to the port, or edit in place "
                    f"({target.id}[:] = ...)",
                )


def _is_without_effect(
    machine: Machine, read: ast.Assign | None, node: ast.Assign, name: str
) -> bool:
    if read is None or not mentions(node.value, name):
        return False
    function = machine.block.function()
    if not is_known_expression(node.value) or end_of(read) > (node.lineno, node.col_offset):
        return False
    if any(isinstance(one, ast.Call) and called_name(one) == "save" for one in ast.walk(node)):
        return False
    conditions = machine.conditions(node)
    loops = [one for one in machine.block.tree.above(node) if one is not machine.block.node]
    if conditions.is_deferred or any(isinstance(one, (ast.For, ast.While)) for one in loops):
        return False
    behind = end_of(node)
    for below in machine.block.tree.walk(function):
        if isinstance(below, ast.Name) and below.id == name and isinstance(below.ctx, ast.Load):
            if end_of(below) > behind or function_of(machine, below) is not function:
                return False
        elif may_look(below, name):
            return False
    return True


def may_look(node: ast.AST, name: str) -> bool:
    """Return whether a node may read a name without mentioning it, as `locals()` does."""
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return name in node.names
    return isinstance(node, ast.Call) and called_name(node) in _LOOKING


def function_of(machine: Machine, node: ast.AST) -> ast.AST:
    """Return the innermost function around a node, or the module."""
    return machine.block.tree.function_of(node)
