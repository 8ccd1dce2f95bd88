"""Traces on fake tensors: scans, of which all names leave, and plans, of which the plan does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight_dsl.runtime.tracebacks import clean, released
from nnsight_dsl.runtime.values.elements import without_aliasing
from nnsight_dsl.studies.plan import Plan, PlanLog, plan_of
from nnsight_dsl.studies.scan import VALUES_WANTED
from nnsight_dsl.tracing.block_run import BlockRun
from nnsight_dsl.tracing.runnable import Input, Runnable
from nnsight_dsl.tracing.tracer import Tracer
from nnsight_dsl.transforms.program import Program


class ScanTracer(Tracer):
    """A trace on fake tensors, of which all names leave."""

    def __init__(
        self, model: Runnable, function: str, given: Input, options: dict[str, Any]
    ) -> None:
        super().__init__(model, function, given, options)
        self._leaves_all = True
        # nothing has to be loaded
        self._is_scan = True

    def _run_once(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        return self._explained(self._new_run(), program, user_globals, names)

    def _explained(
        self,
        run: BlockRun,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
    ) -> tuple[dict[str, Any], BaseException | None]:
        left, failure = self._done(run, program, user_globals, names)
        if isinstance(failure, VALUES_WANTED):
            failure.add_note(
                "a scan has shapes and no values, and here a value decides what comes next; trace "
                "in its place, or scan an input that takes another way"
            )
        return left, failure


class PlanTracer(ScanTracer):
    """A fake run of which only the plan is wanted. Made by `model.plan(...)`."""

    def __init__(
        self, model: Runnable, function: str, given: Input, options: dict[str, Any]
    ) -> None:
        super().__init__(model, function, given, options)
        self._leaves_all = False
        self._is_planned = True

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        self._outer_now = getattr(names, "now", self._outer_now)
        return {}, self._planned(program, user_globals, names)

    def _run_alone(self, intervention: Any) -> Plan:
        """Make the plan of one intervention and no block."""
        names = intervention.names({"model": self._model, "tracer": self})
        failure = self._planned(intervention.program, intervention.user_globals, names)
        if failure is not None:
            clean(failure)
            try:
                raise released(failure)
            finally:
                # the traceback has this frame
                del failure
        return self.plan()

    def _planned(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> BaseException | None:
        run = self._new_run()
        log = run.log = PlanLog()
        copies = {name: without_aliasing(value) for name, value in names.items()}
        left, failure = self._explained(run, program, user_globals, copies)
        if failure is None:
            if self._result is not None:
                left = {**left, "return value": self._result}
            self._plan = plan_of(log, left, run.last)
        return failure
