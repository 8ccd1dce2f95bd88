"""Names that hold model values: which name holds the unchanged value of which access.

    hidden = model.transformer.h[1].output      # `hidden` holds the value of this access
    first = model.transformer.h[1].output[0]    # `first` does not: it is indexed
    scaled = hidden * 2                         # neither does `scaled`

A name counts only if a single assignment can have bound it (see `bindings`). A name that is
rebound, or bound by unpacking, holds no known value, and rules report nothing about it.
"""

from __future__ import annotations

import ast

from .accesses import Access, Machine
from .bindings import Unclear


def access_of(machine: Machine, node: ast.expr) -> tuple[Access, list[ast.expr]] | None:
    """Split `<module>.output[0][:, -1]` into its access and its indices, else None."""
    indices: list[ast.expr] = []
    while isinstance(node, ast.Subscript):
        indices.append(node.slice)
        node = node.value
    for access in machine.accesses:
        if access.node is node and machine.is_of_module(access):
            return access, indices[::-1]
    return None


def assignment_of(machine: Machine, name: ast.Name) -> ast.Assign | None:
    """Return the only assignment that can have bound a name, None if there may be others."""
    binder = machine.names.bindings.binder(name)
    is_single = isinstance(binder, ast.Assign) and len(binder.targets) == 1
    if not isinstance(binder, ast.Assign) or not is_single:
        return None
    return binder if isinstance(binder.targets[0], ast.Name) else None


def read_of(machine: Machine, name: ast.expr) -> Access | None:
    """Return the access whose unchanged value a name holds, None if there is none."""
    if not isinstance(name, ast.Name):
        return None
    assignment = assignment_of(machine, name)
    split = None if assignment is None else access_of(machine, assignment.value)
    return split[0] if split is not None and not split[1] else None


def has_same_value(machine: Machine, name: ast.Name, other: ast.Name) -> bool:
    """Return whether two reads of a name may see the value of the same binding."""
    if name.id != other.id:
        return False
    one, two = (machine.names.bindings.binder(each) for each in (name, other))
    return one is two or isinstance(one, Unclear) or isinstance(two, Unclear)


def called_method(call: ast.Call) -> str | None:
    """Return the name of the method that a call calls, None if it calls no attribute."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else None


def called_name(call: ast.Call) -> str | None:
    """Return the last name of the callee: `f` for `f(...)`, `m` for `x.m(...)`."""
    return call.func.id if isinstance(call.func, ast.Name) else called_method(call)


def mentions(node: ast.AST, name: str) -> bool:
    """Return whether a name occurs anywhere in a node."""
    return any(isinstance(below, ast.Name) and below.id == name for below in ast.walk(node))
