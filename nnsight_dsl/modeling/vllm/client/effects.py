"""What a program can do to its request, as far as that is certain from its text.

An engine serves a request best when it knows what the program leaves alone:

* one that asks no module for its prompt's values lets the prompt be read from the prefix cache;
* one that changes no module's values leaves blocks in that cache which are anybody's, and can be
  shown its prompt after that was computed in pieces.

Certain is what the table of states and the names of the operations tell: a block that calls
unknown code, or names modules by a way that is not in its text, can do anything. So can one that
edits in place what might be a model's value (`hidden += 1`); counting on in a list or in a dict of
the block's own is known to be none. The engine holds a program to what was said of it here, so
nothing is wrong silently where this module should be.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from nnsight_dsl.modeling.vllm.engine_places import NAMES, EnginePlace
from nnsight_dsl.runtime.locations import Place, places_at
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.requests import PORTS, WRITE
from nnsight_dsl.transforms.source.accesses import State


@dataclass(frozen=True, slots=True)
class Reach:
    """What programs can do.

    Attributes:
        meets_prompt: whether they can ask a module for the values of the prompt's tokens.
        may_write: whether they can change what a module hands on.
    """

    meets_prompt: bool
    may_write: bool

    def __or__(self, other: Reach) -> Reach:
        return Reach(self.meets_prompt or other.meets_prompt, self.may_write or other.may_write)


NOTHING = Reach(False, False)
ANYTHING = Reach(True, True)

_CONTAINERS = (list, dict, set)


def reach_of(machine: Machine, user_globals: dict[str, Any], names: Mapping[str, Any]) -> Reach:
    """Tell what a program can do, at most.

    Args:
        machine: the program, with the names that it starts from.
        user_globals: the globals around the block.
        names: the names around the block.
    """
    program = machine.program
    plain = program.plain
    if not machine.is_plain or program.looks_outside or plain is None or plain.makes_cache:
        return ANYTHING
    text = _text_of(program)
    containers = frozenset(
        name
        for name in text.around
        if type(program.initial(name, user_globals, names, fall_back=True)) in _CONTAINERS
    )
    if containers not in text.edits:
        text.edits[containers] = _edits_in_place(text.tree, text.containers(containers))
    found = Reach(False, text.edits[containers])
    for state in program.states:
        places = _places_of(state, machine)
        if places is None:
            return ANYTHING
        if any(isinstance(one, OperationPlace) for one in places):
            # neither kept of the pieces of a prompt, nor repeated
            return ANYTHING
        if any(one._module is not None and not isinstance(one, EnginePlace) for one in places):
            meets = not any(state.line in lines for lines in text.later)
            found |= Reach(meets, state.kind == WRITE)
    return found


def _places_of(state: State, machine: Machine) -> list[Place] | None:
    start = machine.seen_name(state.root) if state.root is not None else None
    return places_at(start, state.path) if isinstance(start, Place) else None


@dataclass(slots=True)
class _Text:
    """What a program's text tells, whatever its names stand for.

    Attributes:
        tree: the text, parsed.
        later: lines in which no step but later ones than the first is asked for.
        made: names that the block gives containers of its own.
        around: names that it takes from around it.
        other: names that it gives something else.
        edits: whether something may be edited in place, by the names around that are containers.
    """

    tree: ast.Module
    later: list[range]
    made: frozenset[str]
    around: frozenset[str]
    other: frozenset[str]
    edits: dict[frozenset[str], bool] = field(default_factory=dict)

    def containers(self, around: frozenset[str]) -> frozenset[str]:
        """Collect the names that stand for nothing but lists, dicts and sets."""
        return (self.made | around) - self.other - (self.around - around)


@lru_cache(maxsize=256)
def _text_of(program: Program) -> _Text:
    tree, shift = _parsed(program)
    made: set[str] = set()
    other: set[str] = set()
    around: set[str] = set()
    assigned: set[ast.Name] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _makes_container(node.value):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    assigned.add(target)
                    made.add(target.id)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            # in place, so it stays what it was
            assigned.add(node.target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load) and node not in assigned:
                other.add(node.id)
            elif node.id not in program.bound:
                around.add(node.id)
    later = _later_lines(tree, shift)
    return _Text(tree, later, frozenset(made), frozenset(around), frozenset(other))


def _parsed(program: Program) -> tuple[ast.Module, int]:
    """Parse a program's own text; return what to add to its lines to have the file's."""
    text = program.source
    if text[:1] in (" ", "\t"):
        return ast.parse(f"if 1:\n{text}"), program.line - 2
    return ast.parse(text), program.line - 1


def _later_lines(tree: ast.AST, shift: int) -> list[range]:
    """Collect the lines in which no step but later ones than the first is asked for."""
    found = []
    for node in ast.walk(tree):
        heads: list[ast.expr] = []
        if isinstance(node, ast.For):
            heads = [node.iter]
        elif isinstance(node, ast.With):
            heads = [item.context_expr for item in node.items]
        if not isinstance(node, (ast.For, ast.With)) or not any(map(_is_later, heads)):
            continue
        inner = [one for body in node.body for one in ast.walk(body)]
        if any(isinstance(one, ast.Attribute) and one.attr in ("iter", "all") for one in inner):
            continue
        first, last = node.body[0].lineno, node.body[-1].end_lineno or 0
        if first > node.lineno:
            found.append(range(first + shift, last + shift + 1))
    return found


def _is_later(head: ast.expr) -> bool:
    if not isinstance(head, ast.Subscript):
        return False
    if not isinstance(head.value, ast.Attribute) or head.value.attr != "iter":
        return False
    first = head.slice.lower if isinstance(head.slice, ast.Slice) else head.slice
    return isinstance(first, ast.Constant) and type(first.value) is int and first.value >= 1


def _edits_in_place(tree: ast.AST, containers: frozenset[str]) -> bool:
    """Tell whether something could be edited in place that may be a model's value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            if node.target.id not in containers:
                return True
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            if not _is_harmless(node.target, frozenset()):
                # the item is edited in place, and may be a model's value
                return True
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            if not isinstance(node.ctx, ast.Load) and not _is_harmless(node, containers):
                return True
        elif isinstance(node, ast.Call):
            if any(keyword.arg in ("out", "inplace") for keyword in node.keywords):
                return True
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr.endswith("_"):
                return True
    return False


def _is_harmless(target: ast.expr, containers: frozenset[str]) -> bool:
    """Tell whether an assignment is one of a state's, or of a container of the block's own."""
    depth = 0
    while isinstance(target, ast.Subscript):
        target, depth = target.value, depth + 1
    if isinstance(target, ast.Attribute):
        # a port is a state, which is looked at as such; the engine's own values are no module's
        return target.attr in PORTS or (target.attr in NAMES and isinstance(target.value, ast.Name))
    return depth == 1 and isinstance(target, ast.Name) and target.id in containers


def _makes_container(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        function = value.func
        if isinstance(function, ast.Attribute) and function.attr == "save" and not value.args:
            return _makes_container(function.value)
        return isinstance(function, ast.Name) and function.id in ("list", "dict", "set")
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))
