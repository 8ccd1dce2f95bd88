"""A value is used after the block, but was never saved.

The names of a block are local to it. Only names that are bound to a saved object leave the block;
any other name is unbound after the block, or keeps the value that it had before.

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
import builtins
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from nnsight_dsl.transforms.names import MISSING
from nnsight_dsl.transforms.source.plain import is_known_expression
from nnsight_dsl.transforms.source.scopes import first_use

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding, Insertion
from ..held_values import called_name
from .rebinding_without_effect import may_look

CODE = "NNS301"
SEVERITY = ERROR

_Binding: TypeAlias = ast.Assign | ast.AugAssign

_KEEPING = frozenset({"save", "cache"})


def check(file: File) -> Iterator[Finding]:
    """Find names that a run binds without saving them, and that the code after it reads."""
    for block in file.blocks:
        if block.kind not in ("trace", "generate", "pipe", "session"):
            continue
        assigned: dict[str, list[_Binding]] = {**_assigned(block)}
        for name, additions in _accumulated(block).items():
            if _starts_from_constants(block, name):
                assigned[name] = additions
        if not assigned:
            continue
        kept = _kept(block)
        assigned = {name: found for name, found in assigned.items() if name not in kept}
        following = list(file.tree.following(block.node)) if assigned else []
        for name, statements in assigned.items():
            if _is_used(file, name, following):
                yield _finding(name, statements, is_bound=_is_bound_before(block, name))


def check_at_entry(file: File, value_of: Callable[[str], Any]) -> Iterator[Finding]:
    """Find names around a block that the block rebinds, but neither saves nor reads.

    Such a statement can only be meant to change the name's value after the block.

    Args:
        file: the analysis of the block that is being entered.
        value_of: returns the value of a name around the block, or `MISSING`.
    """
    for block in file.blocks:
        if block.kind not in ("trace", "generate", "pipe"):
            continue
        assigned: dict[str, list[_Binding]] = {**_assigned(block)}
        for name, additions in _accumulated(block).items():
            # on a mutable object, such as a list or a tensor, `+=` changes the object in place
            if type(value_of(name)) in _IMMUTABLE:
                assigned[name] = additions
        kept = _kept(block) if assigned else set()
        for name, statements in assigned.items():
            value = value_of(name)
            if name in kept or name.startswith("_") or value is MISSING:
                continue
            if value is getattr(builtins, name, MISSING) or _may_be_read(block, name):
                continue
            yield _finding(name, statements, is_bound=True, is_used=False)


_IMMUTABLE = (bool, int, float, complex, str)


def _finding(
    name: str, statements: list[_Binding], *, is_bound: bool, is_used: bool = True
) -> Finding:
    last = statements[-1]
    remedy = "write .save() where it is assigned"
    fix: tuple[Insertion, ...] = ()
    if isinstance(last, ast.AugAssign):
        node: ast.expr = last.target
        addition = ast.unparse(ast.BinOp(ast.Name(name, ast.Load()), last.op, last.value))
        remedy = f"write {name} = ({addition}).save()"
    else:
        node = last.targets[0]
        if len(statements) == 1:
            fix = _saved(last.value)
    seen = f"{name!r} is used after the block, and was not saved in it"
    if not is_used:
        seen = f"{name!r} is bound in the block, which neither saves nor reads it"
    outcome = "keeps the value from before the block" if is_bound else "does not leave the block"
    return Finding(node, f"{seen}, so it {outcome}; {remedy}", fix=fix)


def _saved(value: ast.expr) -> tuple[Insertion, ...]:
    end = Insertion(value.end_lineno or 0, value.end_col_offset or 0, ".save()")
    if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript, ast.Call)):
        return (end,)
    start = Insertion(value.lineno, value.col_offset, "(")
    return start, Insertion(end.line, end.column, ").save()")


def _accumulated(block: Block) -> dict[str, list[_Binding]]:
    """Return the names that are bound only by augmented assignments of known expressions."""
    found: dict[str, list[_Binding]] = {}
    targets: set[ast.Name] = set()
    for node in block.tree.walk(block.node):
        if not isinstance(node, ast.AugAssign) or not isinstance(node.target, ast.Name):
            continue
        if is_known_expression(node.value):
            found.setdefault(node.target.id, []).append(node)
            targets.add(node.target)
    otherwise = set(_bound_otherwise(block, targets))
    return {name: nodes for name, nodes in found.items() if name not in otherwise}


def _bindings_around(block: Block, name: str) -> list[ast.Name]:
    """Return the nodes of the enclosing function that bind a name outside the block."""
    inside = set(block.tree.walk(block.node))
    return [
        node
        for node in block.tree.walk(block.function())
        if isinstance(node, ast.Name)
        and node.id == name
        and not isinstance(node.ctx, ast.Load)
        and node not in inside
    ]


def _is_bound_before(block: Block, name: str) -> bool:
    line = block.node.lineno
    return any(node.lineno < line for node in _bindings_around(block, name))


def _starts_from_constants(block: Block, name: str) -> bool:
    """Return whether a name holds a number or a string around a block, which `+=` rebinds."""
    function = block.function()
    around = _bindings_around(block, name)
    constants = {
        node.targets[0]
        for node in block.tree.walk(function)
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, _IMMUTABLE)
    }
    if not around or not constants.issuperset(around):
        return False
    return not any(
        (isinstance(node, ast.arg) and node.arg == name) or may_look(node, name)
        for node in block.tree.walk(function)
    )


def _may_be_read(block: Block, name: str) -> bool:
    """Return whether a block may read a name, other than in augmented assignments to it."""
    return any(
        (isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load))
        or may_look(node, name)
        for node in block.tree.walk(block.node)
    )


def _assigned(block: Block) -> dict[str, list[_Binding]]:
    """Return the names that are bound only by assignments of known expressions."""
    assigned: dict[str, list[_Binding]] = {}
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
    """Collect the names that may be saved, and those that may refer to a saved object."""
    kept: set[str] = set()
    shares: list[tuple[set[str], set[str]]] = []
    for node in block.tree.walk(block.node):
        if isinstance(node, ast.Call) and called_name(node) not in _PLAIN_CALLS:
            is_keeping = called_name(node) in _KEEPING
            arguments = [*node.args, *(one.value for one in node.keywords)]
            # an unknown function may save its arguments
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
    """Return whether the statements after a block read a name before they bind it."""
    for statement in following:
        use = first_use([statement], name)
        if use == "binds":
            return False
        if use == "reads":
            return not _reads_are_expected_to_fail(file, statement, name)
        if any(isinstance(one, ast.Name) and one.id == name for one in file.tree.walk(statement)):
            # the statement may bind the name on some path, so later reads are uncertain
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
