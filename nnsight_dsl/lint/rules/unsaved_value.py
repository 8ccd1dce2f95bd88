"""A value is used after the block, and was never saved.

The names of a block are its own. Only those that are bound to a saved object leave it; any other
name is not bound after the block, or keeps the value that it had before.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output
    print(hidden.shape)

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output.save()
    print(hidden.shape)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from nnsight_dsl.transforms.source.plain import is_known_expression
from nnsight_dsl.transforms.source.scopes import first_use

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding, Insertion
from ..values import called_name

CODE = "NNS301"
SEVERITY = ERROR

_KEEPING = frozenset({"save", "cache"})


def check(file: File) -> Iterator[Finding]:
    """Follow the names that a run binds to what stands behind it."""
    for block in file.blocks:
        if block.kind not in ("trace", "generate", "session"):
            continue
        assigned = _assigned(block)
        if not assigned:
            continue
        kept = _kept(block)
        assigned = {name: found for name, found in assigned.items() if name not in kept}
        following = list(file.tree.following(block.node)) if assigned else []
        for name, statements in assigned.items():
            if _is_used(file, name, following):
                yield _finding(name, statements)


def _finding(name: str, statements: list[ast.Assign]) -> Finding:
    last = statements[-1]
    fix: tuple[Insertion, ...] = ()
    if len(statements) == 1:
        fix = _saved(last.value)
    return Finding(
        last.targets[0],
        f"{name!r} is used after the block, and was not saved in it, so it does not leave the "
        "block; write .save() where it is assigned",
        fix=fix,
    )


def _saved(value: ast.expr) -> tuple[Insertion, ...]:
    end = Insertion(value.end_lineno or 0, value.end_col_offset or 0, ".save()")
    if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript, ast.Call)):
        return (end,)
    start = Insertion(value.lineno, value.col_offset, "(")
    return start, Insertion(end.line, end.column, ").save()")


def _assigned(block: Block) -> dict[str, list[ast.Assign]]:
    """Return the names that are bound by nothing but assignments of known values."""
    assigned: dict[str, list[ast.Assign]] = {}
    plain_targets: set[ast.Name] = set()
    for node in block.tree.walk(block.node):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name) and is_known_expression(node.value):
                assigned.setdefault(target.id, []).append(node)
                plain_targets.add(target)
    otherwise = set(_bound_otherwise(block, plain_targets))
    return {name: found for name, found in assigned.items() if name not in otherwise}


def _bound_otherwise(block: Block, known: set[ast.Name]) -> Iterator[str]:
    for node in block.tree.walk(block.node):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and node not in known:
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]


def _kept(block: Block) -> set[str]:
    """Collect the names that a save may be about, and those that may share its object."""
    kept: set[str] = set()
    shares: list[tuple[set[str], set[str]]] = []
    for node in block.tree.walk(block.node):
        if isinstance(node, ast.Call) and called_name(node) not in _PLAIN_CALLS:
            is_keeping = called_name(node) in _KEEPING
            arguments = [*node.args, *(one.value for one in node.keywords)]
            # what is handed to a call that nobody knows may be saved in it
            kept |= _names(*arguments)
            if is_keeping and isinstance(node.func, ast.Attribute):
                kept |= _names(node.func.value)
        if isinstance(node, ast.Assign):
            bound = _names(*node.targets)
            if any(
                isinstance(below, ast.Call) and called_name(below) in _KEEPING
                for below in ast.walk(node.value)
            ):
                kept |= bound
            if isinstance(node.value, (ast.Name, ast.Tuple, ast.List, ast.IfExp)):
                shares.append((bound, _names(node.value)))
    changed = True
    while changed:
        before = len(kept)
        for bound, used in shares:
            if kept & (bound | used):
                kept |= bound | used
        changed = len(kept) > before
    return kept


_PLAIN_CALLS = frozenset(
    "abs append argmax argmin cat clone cpu dict detach enumerate float int isinstance item len "
    "list max mean min norm print range round set softmax sorted stack str sum topk tuple "
    "zip trace invoke generate format".split()
)


def _names(*nodes: ast.AST) -> set[str]:
    return {below.id for node in nodes for below in ast.walk(node) if isinstance(below, ast.Name)}


def _is_used(file: File, name: str, following: list[ast.stmt]) -> bool:
    """Tell whether the statements behind a block read a name before they bind it."""
    for statement in following:
        use = first_use([statement], name)
        if use == "binds":
            return False
        if use == "reads":
            return not _reads_are_expected_to_fail(file, statement, name)
        if any(isinstance(one, ast.Name) and one.id == name for one in file.tree.walk(statement)):
            # bound on some way through the statement, perhaps
            return False
    return False


def _reads_are_expected_to_fail(file: File, statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try)):
        return True
    return any(
        file.tree.is_expected_to_fail(node)
        for node in file.tree.walk(statement)
        if isinstance(node, ast.Name) and node.id == name
    )
