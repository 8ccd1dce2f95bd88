"""Effect analysis: an upper bound of a program's effects on its request, from the program's text.

vLLM serves a request better the less its program does:

* If the program asks no module for values of the prompt, the request may read the prefix cache.
* If it changes no module's values, the KV blocks that the request computes are valid for other
  requests. Its prompt may also be computed in pieces (chunked prefill), and be shown to the program
  as a whole after the last piece.

`reach_of` returns this bound as a `Reach`:

    hidden = model.transformer.h[1].output.save()      meets_prompt
    model.transformer.h[1].output[:] = 0               meets_prompt, may_write
    logits = model.logits.output.save()                neither: logits are not a module's value

The analysis reads the table of states, and looks in the syntax tree for edits in place. It is
conservative: a block that calls unknown code, or reaches modules through a name that its text does
not show, gets `ANYTHING`. An edit in place of a value that may be a model's (`hidden += 1`) counts
as a write; adding to a list or a dict that the block made does not.

A wrong bound cannot go unnoticed: the engine enforces it, and raises at a write by a program that
was sent without `may_write`.
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
from nnsight_dsl.transforms.parsing import parsed_statements
from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.requests import PORTS, WRITE
from nnsight_dsl.transforms.source.accesses import State


@dataclass(frozen=True, slots=True)
class Reach:
    """Upper bound of the effects of programs; `|` is the bound of both operands.

    Attributes:
        meets_prompt: False only if no program asks a module for values of the prompt's tokens.
        may_write: False only if no program changes a module's input or output.
    """

    meets_prompt: bool
    may_write: bool

    def __or__(self, other: Reach) -> Reach:
        return Reach(self.meets_prompt or other.meets_prompt, self.may_write or other.may_write)


NOTHING = Reach(False, False)
ANYTHING = Reach(True, True)

_CONTAINERS = (list, dict, set)


def reach_of(machine: Machine, user_globals: dict[str, Any], names: Mapping[str, Any]) -> Reach:
    """Return an upper bound of a program's effects.

    Args:
        machine: the program, with the initial values of its names.
        user_globals: the globals around the block.
        names: the other names around the block.
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
            # operations are not offered piece by piece, and their edits are not repeated after
            # preemption, so the prompt must be computed whole
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
    """Facts about a program's text that hold for any values of its free names; cached by program.

    Attributes:
        tree: the syntax tree.
        later: lines that ask for values of steps after the first only, which is the prompt's.
        made: names that the block binds to new containers.
        around: names that the block reads from around it.
        other: names that it binds to other values.
        edits: cache: whether a model's value may be edited in place, by the set of names around
            the block that are containers.
    """

    tree: ast.Module
    later: list[range]
    made: frozenset[str]
    around: frozenset[str]
    other: frozenset[str]
    edits: dict[frozenset[str], bool] = field(default_factory=dict)

    def containers(self, around: frozenset[str]) -> frozenset[str]:
        """Return the names that are bound to lists, dicts and sets only.

        Args:
            around: the names around the block that are containers.
        """
        return (self.made | around) - self.other - (self.around - around)


@lru_cache(maxsize=256)
def _text_of(program: Program) -> _Text:
    tree = ast.Module(parsed_statements(program.source, program.line), [])
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
            # `+=` on a container returns the same container, so this binds no other value
            assigned.add(node.target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load) and node not in assigned:
                other.add(node.id)
            elif node.id not in program.bound:
                around.add(node.id)
    later = _later_lines(tree)
    return _Text(tree, later, frozenset(made), frozenset(around), frozenset(other))


def _later_lines(tree: ast.AST) -> list[range]:
    """Collect the lines that ask for values of steps after the first only.

    Those are the bodies of `for ... in tracer.iter[1:]` and `with tracer.iter[1]` with a constant
    of at least 1, unless another `iter` or `all` in the body could go back to the first step.
    """
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
            found.append(range(first, last + 1))
    return found


def _is_later(head: ast.expr) -> bool:
    if not isinstance(head, ast.Subscript):
        return False
    if not isinstance(head.value, ast.Attribute) or head.value.attr != "iter":
        return False
    first = head.slice.lower if isinstance(head.slice, ast.Slice) else head.slice
    return isinstance(first, ast.Constant) and type(first.value) is int and first.value >= 1


def _edits_in_place(tree: ast.AST, containers: frozenset[str]) -> bool:
    """Return whether the text edits a value in place that may be a model's.

    Args:
        tree: the syntax tree.
        containers: names that are bound to lists, dicts and sets only.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            if node.target.id not in containers:
                return True
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            if not _is_harmless(node.target, frozenset()):
                # `hiddens[0] += 1` edits the item, which may be a model's value
                return True
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            if not isinstance(node.ctx, ast.Load) and not _is_harmless(node, containers):
                return True
        elif isinstance(node, ast.Call):
            if any(keyword.arg in ("out", "inplace") for keyword in node.keywords):
                return True
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr.endswith("_"):
                # torch's name of an operation in place, as `add_`
                return True
    return False


def _is_harmless(target: ast.expr, containers: frozenset[str]) -> bool:
    """Return whether an assignment to a target cannot edit a model's value unseen.

    It is harmless if the target is a port, since the table of states has that write, if it is
    `model.logits` or `model.samples`, or if it is an item of a container.
    """
    depth = 0
    while isinstance(target, ast.Subscript):
        target, depth = target.value, depth + 1
    if isinstance(target, ast.Attribute):
        return target.attr in PORTS or (target.attr in NAMES and isinstance(target.value, ast.Name))
    return depth == 1 and isinstance(target, ast.Name) and target.id in containers


def _makes_container(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        function = value.func
        if isinstance(function, ast.Attribute) and function.attr == "save" and not value.args:
            return _makes_container(function.value)
        return isinstance(function, ast.Name) and function.id in ("list", "dict", "set")
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))
