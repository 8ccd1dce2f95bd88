"""Sessions: several traces in one block, between which values flow without being saved.

    with model.session():
        with model.trace("Hello"):
            hidden = model.transformer.h[5].output
        with model.trace("World"):
            model.transformer.h[5].output[:] = hidden
            logits = model.lm_head.output.save()

A name bound in a trace is a name of the session from then on; saved names leave the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight_dsl.blocks.block import Block
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.saved import Saved
from nnsight_dsl.tracing.saving import INJECTED
from nnsight_dsl.transforms.names import OUTER
from nnsight_dsl.transforms.program import Program


class Session(Block):
    """A block of traces. Made by `model.session()`."""

    def __init__(self, root: Place) -> None:
        self._root = root
        self._outer_now: Any = None

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        machine = self._machine_of(program, user_globals, names, Saved())
        failure = self._traced(machine)
        return machine.leaving(machine.names), failure

    def _run_inside(
        self,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        saved: Saved,
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Run as a block inside another block, to which all names leave, saved or not."""
        machine = self._machine_of(program, user_globals, names, saved)
        machine.leaves_all = True
        failure = self._traced(machine)
        return machine.leaving(machine.names), failure

    def _machine_of(
        self,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        saved: Saved,
    ) -> Machine:
        outer_now = getattr(names, "now", self._outer_now)
        injected = INJECTED if outer_now is None else {**INJECTED, OUTER: outer_now}
        machine = Machine.start(program, user_globals, names, saved, injected, is_plain=False)
        machine.is_builder = True
        return machine

    def _traced(self, machine: Machine) -> BaseException | None:
        driver = Driver(self._root)
        driver.is_session = True
        driver.build(machine)
        return driver.failure
