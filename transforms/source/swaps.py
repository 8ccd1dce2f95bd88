"""Assignments to one name twice, which some versions of Python get wrong in a function.

This:

    x, x = 1, x

becomes, in the syntax tree:

    x, x = (*(1, x),)

CPython 3.11.0 to 3.11.2 leave the tuple out, and in functions reorder its stores, so that the first
one is the last: `x` is 1. A block becomes a function, wherever it stands. Values that are unpacked
from another tuple keep their order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator


def keep_order_of_stores(tree: ast.AST) -> None:
    """Rewrite, in place, the assignments of a tree that bind one name twice."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, (ast.Tuple, ast.List))
            and any(_binds_twice(target) for target in node.targets)
        ):
            starred = ast.copy_location(ast.Starred(node.value, ast.Load()), node.value)
            node.value = ast.copy_location(ast.Tuple([starred], ast.Load()), node.value)


def _binds_twice(target: ast.expr) -> bool:
    names = list(_names(target))
    return len(set(names)) < len(names)


def _names(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        for each in target.elts:
            yield from _names(each)
