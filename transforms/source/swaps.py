"""A workaround for a CPython bug: an assignment that binds one name twice.

This:

    x, x = 1, x

becomes, in the syntax tree:

    x, x = (*(1, x),)

CPython 3.11.0 to 3.11.2 optimise the tuple away, and in functions also reorder the stores, so that
`x` is 1 instead of its old value. A block at module level is not affected in plain Python, but it
is lowered to a function. Values unpacked from a second tuple are stored in order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator


def keep_order_of_stores(tree: ast.AST) -> None:
    """Rewrite the assignments of a tree that bind one name twice, in place."""
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
