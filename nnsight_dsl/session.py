"""Sessions: several traces in one block, between which values flow without being saved.

    with model.session():
        with model.trace("Hello"):
            hidden = model.transformer.h[5].output
        with model.trace("World"):
            model.transformer.h[5].output[:] = hidden
            logits = model.lm_head.output.save()

What a trace binds is a name of the session's from then on; what is saved leaves the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight_dsl.block import Block
from nnsight_dsl.runtime.driver import Driver
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machine import Machine
from nnsight_dsl.runtime.saved import Saved
from nnsight_dsl.saving import INJECTED
from nnsight_dsl.transforms.program import Program


class Session(Block):
    """A block of traces. Made by `model.session()`."""

    def __init__(self, root: Place) -> None:
        self._root = root

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        saved = Saved()
        machine = Machine(
            program, user_globals, names, saved, INJECTED, is_plain=False, seen_names={}
        )
        machine.is_builder = True
        driver = Driver(self._root)
        driver.build(machine)
        return machine.leaving(machine.names), driver.failure
