"""One run of several programs, as a sweep makes it, by a driver of the sweep's choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.driving.prefix_sharing import TRUNK
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.turns import Turn
from nnsight_dsl.runtime.values.elements import without_aliasing
from nnsight_dsl.studies.dry_run import rehearsed
from nnsight_dsl.tracing.block_run import BlockRun
from nnsight_dsl.tracing.intervene import Intervention
from nnsight_dsl.tracing.runnable import Batch, Input


@dataclass(slots=True, eq=False)
class SweepRun(BlockRun):
    """One run of several programs.

    Attributes:
        is_rehearsal: True if the run has no lasting effect.
    """

    is_rehearsal: bool = False

    def start(self, one: Intervention[..., Any], *, copies: bool) -> Machine:
        """Make the machine of a program, with copies of its containers if asked for."""
        names = one.names({"model": self.model, "tracer": self.tracer})
        if copies:
            names = {name: without_aliasing(value) for name, value in names.items()}
        return self.machine_of(one.program, one.user_globals, names)

    def run_shared(
        self, driver: Driver, machines: Sequence[Machine], batch: Batch, turn: Turn
    ) -> Any:
        """Run machines that all begin with the only row; return the model's output."""
        self.driver = driver
        driver.record = turn.record
        self.start_beside()
        self.invokes += [(machine, Input((), rows=TRUNK)) for machine in machines]
        return self.run_on(batch.args, dict(batch.kwargs))

    def run_batched(self, machines: Sequence[Machine], prompt: Any, turn: Turn) -> Driver:
        """Run machines with a row for each; return the driver."""
        driver = self.start_driver(turn)
        self.start_beside()
        self.invokes += [(machine, Input((prompt,))) for machine in machines]
        self.run_model()
        return driver

    @property
    def count_beside(self) -> int:
        """The number of machines that run before those of the sweep, on all rows."""
        return len(self.model._edits) + len(self.interventions)

    def called(self) -> Any:
        """Return the function that the run calls."""
        # a zero-argument super() does not work in a dataclass with slots
        return rehearsed(self.model._module) if self.is_rehearsal else BlockRun.called(self)
