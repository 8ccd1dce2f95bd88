"""Making a program that fails smaller, as long as it fails.

What is tried: fewer entries, nothing happening between them, a plainer entry point, fewer blocks,
fewer statements, what is inside of a statement in its place, and smaller expressions.
"""

from __future__ import annotations

import ast
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.differential.programs import FUNCTIONS, Part, Program


def shrunk(program: Program, fails: Callable[[Program], bool], seconds: float) -> Program:
    """Return the smallest program found that still fails, within some time."""
    end = time.monotonic() + seconds
    found = True
    while found:
        found = False
        for smaller in _smaller(program):
            if time.monotonic() > end:
                return program
            if _is_valid(smaller) and fails(smaller):
                program, found = smaller, True
                break
    return program


def _is_valid(program: Program) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(program.text(), "<a program>", "exec", dont_inherit=True)
            for part in program.parts:
                # by itself, a `return` in it is none of the function around it
                compile(part.body, "<a part>", "exec", dont_inherit=True)
    except (SyntaxError, SyntaxWarning):
        return False
    return True


def _smaller(program: Program) -> Iterator[Program]:
    events = program.events
    for number in range(len(events)):
        if len(events) > 1:
            yield replace(program, events=events[:number] + events[number + 1 :])
    if program.kind == "invokes" and "barrier" in program.before:
        yield replace(program, before="", parts=_without(program, "m()"))
    for number, event in enumerate(events):
        if event != "nothing":
            changed = (*events[:number], "nothing", *events[number + 1 :])
            yield replace(program, events=changed)
    if program.entry not in ("text", *FUNCTIONS):
        yield replace(program, entry="text")
    if not program.in_function and program.entry not in FUNCTIONS:
        yield replace(program, in_function=True)
    for number in range(len(program.parts)):
        if len(program.parts) > 1 and program.kind in ("invokes", "session"):
            parts = program.parts[:number] + program.parts[number + 1 :]
            yield replace(program, parts=parts)
    for number, part in enumerate(program.parts):
        for body in _smaller_texts(part.body):
            parts = (
                *program.parts[:number],
                replace(part, body=body),
                *program.parts[number + 1 :],
            )
            yield replace(program, parts=parts)


def _without(program: Program, line: str) -> tuple[Part, ...]:
    """Leave a line out of all blocks."""
    return tuple(
        replace(part, body="\n".join(one for one in part.body.splitlines() if one != line))
        for part in program.parts
    )


def _smaller_texts(text: str) -> Iterator[str]:
    tree = ast.parse(text)
    for smaller in _smaller_bodies(tree):
        yield ast.unparse(smaller)
    if len(text) < 3000:
        for smaller in _smaller_expressions(tree):
            yield ast.unparse(smaller)


_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")


def _lists(tree: ast.AST) -> Iterator[tuple[list[int], str]]:
    """Find the lists of statements in a tree, by the number of their node and their field."""
    for number, node in enumerate(ast.walk(tree)):
        for field in _BODIES:
            if isinstance(getattr(node, field, None), list):
                yield [number], field


def _smaller_bodies(tree: ast.Module) -> Iterator[ast.Module]:
    for (number,), field in _lists(tree):
        node = [*ast.walk(tree)][number]
        length = len(getattr(node, field))
        sizes = [size for size in (8, 4, 2, 1) if size <= length]
        for size in sizes:
            for start in range(0, length - size + 1, size):
                smaller = copy.deepcopy(tree)
                body = getattr([*ast.walk(smaller)][number], field)
                del body[start : start + size]
                if not body and field == "body":
                    body.append(ast.Pass())
                yield smaller
        if field in ("handlers", "cases"):
            continue
        for place in range(length):
            inner = getattr(node, field)[place]
            for name in _BODIES:
                if getattr(inner, name, None) and name not in ("handlers", "cases"):
                    smaller = copy.deepcopy(tree)
                    body = getattr([*ast.walk(smaller)][number], field)
                    body[place : place + 1] = getattr(body[place], name)
                    yield smaller
            for case in getattr(inner, "cases", None) or getattr(inner, "handlers", None) or []:
                smaller = copy.deepcopy(tree)
                body = getattr([*ast.walk(smaller)][number], field)
                body[place : place + 1] = copy.deepcopy(case.body)
                yield smaller


class _Replaced(ast.NodeTransformer):
    """Puts another expression in the place of one, which it knows by identity."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _smaller_expressions(tree: ast.Module) -> Iterator[ast.Module]:
    for number, node in enumerate(ast.walk(tree)):
        if not isinstance(node, ast.expr) or isinstance(node, (ast.Constant, ast.Name)):
            continue
        if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            continue
        children = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.expr) and not isinstance(child, ast.Constant)
        ]
        n_children = len(children)
        for choice in range(-1, n_children):
            smaller = copy.deepcopy(tree)
            old = [*ast.walk(smaller)][number]
            if not isinstance(old, ast.expr):
                continue
            new: ast.expr = ast.Constant(1)
            if choice >= 0:
                new = [
                    child
                    for child in ast.iter_child_nodes(old)
                    if isinstance(child, ast.expr) and not isinstance(child, ast.Constant)
                ][choice]
            changed = _Replaced(old, new).visit(smaller)
            yield ast.fix_missing_locations(changed)


def described(program: Program, said: str) -> str:
    """Write a failing program out, so that it can be read and run by itself."""
    facts = (
        f"seed {program.seed}, {program.family} {' '.join(program.layers)}, entered as "
        f"{program.entry!r}, events {', '.join(program.events)}"
    )
    return f"# {facts}\n# {said.strip()}\n\n{program.text()}".replace("\n# \n", "\n")
