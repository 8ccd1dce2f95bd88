"""Facts of a block's text that its program keeps, for messages and warnings of a run.

    with model.trace("Hello"):
        with torch.no_grad():                               # state_blocks: lines 2 and 3
            hidden = model.transformer.h[3].output[0].save()    # first_items: line 3

Here `saved_names` is `{"hidden"}`. Each function takes the statements of the block, as `ast` has
them.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

_STATE_CALLS = frozenset(
    "no_grad enable_grad set_grad_enabled inference_mode autocast sdpa_kernel".split()
)


def state_blocks(body: Sequence[ast.stmt]) -> tuple[tuple[int, int], ...]:
    """Collect the line ranges of the `with` statements that set a torch mode, as `no_grad` does."""
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.With)
        and any(
            isinstance(name, (ast.Name, ast.Attribute))
            and (name.attr if isinstance(name, ast.Attribute) else name.id) in _STATE_CALLS
            for item in node.items
            for name in ast.walk(item.context_expr)
        )
    )


def first_items(body: Sequence[ast.stmt]) -> frozenset[int]:
    """Collect the lines that contain `<anything>.output[0]`."""
    return frozenset(
        node.lineno
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and node.slice.value == 0
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "output"
    )


def saved_names(body: Sequence[ast.stmt]) -> frozenset[str]:
    """Collect the names that are assigned directly from a call named `save`."""
    found: set[str] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    found |= _pairs(target, node.value)
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                found |= _pairs(node.target, node.value)
    return frozenset(found)


def _pairs(target: ast.expr, value: ast.expr) -> set[str]:
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        if len(target.elts) == len(value.elts):
            pairs = zip(target.elts, value.elts, strict=True)
            return set().union(*(_pairs(left, right) for left, right in pairs))
        return set()
    if isinstance(target, ast.Name) and isinstance(value, ast.Call):
        function = value.func
        called = function.attr if isinstance(function, ast.Attribute) else None
        called = function.id if isinstance(function, ast.Name) else called
        return {target.id} if called == "save" else set()
    return set()
