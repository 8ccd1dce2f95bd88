"""Edits: programs that start with each run of a wrapper.

    with model.edit() as edited:
        model.transformer.h[1].output[:, -1] = 0

    with edited.trace("Hello"):                  # with the edit
        ...
    with model.trace("Hello"):                   # without
        ...

An edit lives in the wrapper. Nothing is left on the module between runs, and two wrappers of one
module share its weights. In a generation an edit is made in every step, unless it loops over
steps itself.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnsight_dsl.blocks.block import Block
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.parsing import one_at_a_time
from nnsight_dsl.transforms.program import Program


@dataclass(frozen=True, slots=True, eq=False)
class KeptEdit:
    """A program with the values of its names when it was written.

    Attributes:
        program: the program of the edit.
        user_globals: globals of the module it was written in.
        names: names of the function it was written in.
    """

    program: Program
    user_globals: dict[str, Any]
    names: dict[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptEdit:
        # the edit is for the copy of the wrapper from now on; all other values are shared
        names = {
            name: copy.deepcopy(value, memo) if isinstance(value, Place) else value
            for name, value in self.names.items()
        }
        return type(self)(self.program, self.user_globals, names)

    @property
    def is_for_each_step(self) -> bool:
        """Whether a generation makes the edit in each of its steps."""
        tree = one_at_a_time(ast.parse)(self.program.lowered)
        return not any(
            (isinstance(node, ast.Constant) and node.value == requests.STEPS)
            or (isinstance(node, ast.Attribute) and node.attr == "next")
            for node in ast.walk(tree)
        )


class Edit(Block):
    """The block of an edit. Made by `model.edit()`."""

    _kept_class: type[KeptEdit] = KeptEdit

    def __init__(self, model: Any, *, is_inplace: bool) -> None:
        self._model = model
        self._is_inplace = is_inplace

    def _bound_value(self) -> Any:
        return self._model

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        kept = {name: names[name] for name in _needed(program) if name in names}
        self._model._edits.append(self._kept_class(program, user_globals, kept))
        return {}, None

    def _run_inside(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any], saved: Any
    ) -> tuple[dict[str, Any], BaseException | None]:
        return self._finished(program, user_globals, names)


def _needed(program: Program) -> set[str]:
    """Collect the names that a program, and the blocks in it, take from around them."""
    needed = set(program.params) | {state.root for state in program.states if state.root}
    if program.plain is not None:
        needed |= program.plain.roots
    for child in program.children:
        needed |= _needed(child)
    return needed
