"""The short way of a run: one plain block without invokes, on an input of its trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnsight_dsl.runtime.driver import Driver
from nnsight_dsl.runtime.machine import Machine
from nnsight_dsl.saving import INJECTED
from nnsight_dsl.transforms.program import Program

if TYPE_CHECKING:
    from nnsight_dsl.fit import Fit
    from nnsight_dsl.tracer import Tracer


def run_alone(
    tracer: Tracer,
    fit: Fit,
    program: Program,
    user_globals: dict[str, Any],
    names: Mapping[str, Any],
) -> tuple[dict[str, Any], BaseException | None] | None:
    """Run a plain block without invokes, on an input of the trace, where its fit still holds.

    This is what `Tracer._run_once` comes to for the blocks that most are. Written in one piece it
    takes 13 of 36 Python frames fewer for an empty block, and saves 4 of 13 µs.

    Returns:
        What `_run_once` returns; None where the fit does not hold, and nothing has been run.
    """
    model, given = tracer._model, tracer._given
    if not given.args:
        return None
    model._prepare()
    with model._family:
        if not fit.holds(program, user_globals, names):
            return None
        driver = tracer._driver = Driver(model)
        machine = Machine(
            program, user_globals, names, tracer._saved, INJECTED, True, fit.seen, fit.function
        )
        machine.fixtures = fit.fixtures
        machine.expected = fit.expected
        machine.is_closed = fit.is_closed
        if tracer._leaves_all:
            machine.leaves_all = True
        try:
            driver.add(machine)
            function: Any = model._module
            args, kwargs = given.args, given.kwargs
            if model._makes_batches:
                batch = model._batch([given], "trace", {})
                driver.factor = model._rows_per_row(batch.kwargs)
                function, args, kwargs = model._function("trace"), batch.args, batch.kwargs
            driver.run(function, args, kwargs)
        finally:
            tracer._driver = None
    failure = driver.failure
    if failure is not None:
        tracer._explain_failure(failure)
    tracer._result = machine.result
    if not tracer._leaves_all:
        tracer._saved.clear()
    return machine.names, failure
