"""Values in a block, as far as the text tells: which names hold a value just as it was read."""

from __future__ import annotations

import ast

from .accesses import Access, Machine


def access_of(machine: Machine, node: ast.expr) -> tuple[Access, list[ast.expr]] | None:
    """Split `<module>.output[0][:, -1]` into its access and its indices; None for all else."""
    indices: list[ast.expr] = []
    while isinstance(node, ast.Subscript):
        indices.append(node.slice)
        node = node.value
    for access in machine.accesses:
        if access.node is node and machine.is_of_module(access):
            return access, indices[::-1]
    return None


def single_assignments(machine: Machine) -> dict[str, ast.Assign]:
    """Return the statements of a block that bind a name which is bound nowhere else."""
    tree = machine.block.tree
    counts = tree.bindings(machine.block.function())
    found = {}
    for node in machine.block.nodes():
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name) and counts[target.id] == 1:
                found[target.id] = node
    return found


def reads_by_name(machine: Machine) -> dict[str, Access]:
    """Return the accesses whose value is bound to a name as it is, by that name."""
    found = {}
    for name, node in single_assignments(machine).items():
        split = access_of(machine, node.value)
        if split is not None and not split[1]:
            found[name] = split[0]
    return found


def called_method(call: ast.Call) -> str | None:
    """Return the name of the method that a call is of."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else None


def called_name(call: ast.Call) -> str | None:
    """Return the last name of what a call calls."""
    return call.func.id if isinstance(call.func, ast.Name) else called_method(call)


def mentions(node: ast.AST, name: str) -> bool:
    """Tell whether a name stands anywhere in a node."""
    return any(isinstance(below, ast.Name) and below.id == name for below in ast.walk(node))
