"""One run of a model, with the programs that take part in it.

A tracer makes one for each run: one for its block, and one before that for a run on fake tensors.
It starts the machines (edits first, then interventions, then the block and its invokes), makes one
call of the model of their inputs, and hands all of it to a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nnsight_dsl.config import CONFIG
from nnsight_dsl.envoys.shadowing import explain_shadowed
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.driving.early_stop import Stopping
from nnsight_dsl.runtime.driving.log import Log
from nnsight_dsl.runtime.driving.results import streaming
from nnsight_dsl.runtime.errors import InputError, InternalError, InvokeError, SharedNameError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.saved import Saved
from nnsight_dsl.runtime.tracebacks import released, traceback_at
from nnsight_dsl.runtime.turns import Turn, in_turn
from nnsight_dsl.runtime.values.rows import Rows
from nnsight_dsl.studies.scan import faked, stop_points
from nnsight_dsl.tracing.edit import KeptEdit
from nnsight_dsl.tracing.guards import Fit, fit_of
from nnsight_dsl.tracing.runnable import Input, Runnable
from nnsight_dsl.tracing.saving import INJECTED
from nnsight_dsl.tracing.tensor_save import explain_helpers, mount, unmount
from nnsight_dsl.transforms.names import OUTER
from nnsight_dsl.transforms.program import Program

Driver.mount, Driver.unmount = staticmethod(mount), staticmethod(unmount)

_ALL_ROWS = Input(())
"""The input of a machine that sees the rows of all inputs, and adds none."""


def explain_failure(model: Runnable, error: BaseException) -> None:
    """Add notes to an error of a run whose cause is known."""
    explain_helpers(error)
    explain_shadowed(model, error)
    model._explain(error)


@dataclass(slots=True, eq=False)
class BlockRun:
    """One run of a model.

    Attributes:
        tracer: the user's tracer, which a program may name.
        model: the wrapper that runs.
        function: `"trace"` or `"generate"`.
        given: the input of the trace itself.
        options: arguments of the model that were given for all inputs together.
        saved: the values that were saved.
        interventions: programs that run beside the blocks.
        outer_now: looks a name up in the frame around the block; None if a copy of its names is
            enough.
        leaves_all: True if all names leave the blocks, saved or not.
        is_fake: True if it runs on fake tensors.
        stops: True if the forward stops where the last block ends.
        log: records the values that are served, if there is one.
        order: records the order of the modules for the linter, on the first run of a program.
        fn: the function that is run in place of the model, if one was given.
        has_barrier: True once a block has made a barrier.
        driver: the driver, once there is one.
        invokes: the machines, each with its input.
        beside: those of the machines that are edits and interventions.
        fits: guards of programs that have not completed a run yet.
        result: what the run returned, as the block sees it.
        last: the last access of the blocks, if the run stops early.
    """

    tracer: Place
    model: Runnable
    function: str
    given: Input
    options: dict[str, Any]
    saved: Saved
    interventions: tuple[Any, ...] = ()
    outer_now: Callable[[str], Any] | None = None
    leaves_all: bool = False
    is_fake: bool = False
    stops: bool = False
    log: Log | None = None
    order: Any = None
    fn: Callable[..., Any] | None = None
    has_barrier: bool = False
    driver: Driver | None = None
    invokes: list[tuple[Machine, Input]] = field(default_factory=list)
    beside: list[Machine] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    result: Any = None
    last: tuple[Place, str] | None = None

    def run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Run the model with a block; return the names that leave, and the block's exception."""
        if not self.is_fake:
            self.model._prepare()
        machine, driver = in_turn(self.model._family, self._run_block, program, user_globals, names)
        if driver.failure is None:
            for fit in self.fits:
                fit.is_tried = True
        self.result = machine.result
        self.last = driver.last if isinstance(driver, Stopping) else None
        left = machine.leaving(machine.names) if machine.is_builder else {}
        for other in driver.machines:
            # edits and interventions have names that are not the user's here
            if other.names and other not in self.beside:
                left.update(other.names)
        if not self.leaves_all:
            # the user may keep the tracer, but what the blocks saved is now in the user's names
            self.saved.clear()
        return left, driver.failure

    def _run_block(
        self, turn: Turn, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[Machine, Driver]:
        driver = self.start_driver(turn)
        machine = self.machine_of(program, user_globals, names)
        if self.model._edits or self.interventions:
            self.start_beside()
        takes_invokes = bool(program.children) and program.has_invokes
        if not takes_invokes and (self.given or self.runs_empty()):
            self.invokes.append((machine, self.given))
            self.run_model()
        else:
            machine.is_builder = True
            driver.build(machine)
            if driver.failure is None:
                self.run_model()
        return machine, driver

    def run_without_block(self, arguments: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Any:
        """Run the model with its edits and the interventions; return its output.

        Args:
            arguments: those of the model's forward; None makes them of the trace's input.
        """
        self.model._prepare()
        result, driver = in_turn(self.model._family, self._run_beside, arguments)
        failure, driver.failure = driver.failure, None
        if failure is not None:
            try:
                raise released(failure)
            finally:
                # the traceback has this frame
                del failure
        return result

    def _run_beside(
        self, turn: Turn, arguments: tuple[tuple[Any, ...], dict[str, Any]] | None
    ) -> tuple[Any, Driver]:
        driver = self.start_driver(turn)
        self.start_beside()
        return (self.run_model() if arguments is None else self.run_on(*arguments)), driver

    # machines

    def machine_of(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> Machine:
        """Make the machine of a program, with the guards of the program on this model."""
        fit = fit_of(self.model, self.model._fits, program, user_globals, names)
        seen = fit.seen
        is_usual = self.outer_now is None
        if fit.roots:
            seen = {**seen}
            for name in fit.roots:
                seen[name] = program.initial(name, user_globals, names, fall_back=True)
        machine = Machine.start(
            program,
            user_globals,
            names,
            self.saved,
            INJECTED if is_usual else {**INJECTED, OUTER: self.outer_now},
            is_plain=fit.is_plain,
            function=fit.function if is_usual else None,
        )
        machine.seen_names = seen
        if self.leaves_all:
            machine.leaves_all = True
        machine.needs = fit.needs
        if not fit.is_tried:
            # values of unknown types may bring code along that asks for any module
            machine.needs = replace(fit.needs, is_closed=False)
            self.fits.append(fit)
        return machine

    def start_beside(self) -> None:
        """Start the edits, then the interventions: before the blocks, and on all rows."""
        for edit in self.model._edits:

            def start(edit: KeptEdit = edit) -> Machine:
                machine = self.machine_of(edit.program, edit.user_globals, edit.names)
                self.beside.append(machine)
                return machine

            self.invokes.append((start(), _ALL_ROWS))
            driver = self.driver
            if driver is not None and driver.is_stepped and edit.is_for_each_step:
                driver.each_step.append(start)
        for one in self.interventions:
            names = one.names({"model": self.model, "tracer": self.tracer})
            machine = self.machine_of(one.program, one.user_globals, names)
            self.beside.append(machine)
            self.invokes.append((machine, _ALL_ROWS))

    # the model

    def start_driver(self, turn: Turn) -> Driver:
        """Make the driver, in the turn of the run."""
        stepping = self.model._stepping() if self.model._takes_steps(self.function) else None
        kind = Stopping if self.stops else Driver
        driver = self.driver = kind(self.model, stepping)
        driver.record = turn.record
        self.model._set_up(driver)
        driver.has_beside = self.model._has_parts_beside
        driver.splits = self.model._splits()
        if self.is_fake and driver.is_stepped:
            driver.is_partial = True
        if self.log is not None:
            driver.log = self.log
        return driver

    def runs_empty(self) -> bool:
        """Return whether the model can be called without any input."""
        if self.fn is not None:
            return True
        return self.function == "trace" and self.model._runs_empty(self.options)

    def run_model(self) -> Any:
        """Make one call of the inputs, give each machine its rows, and run the model."""
        driver = self._driver()
        given = [self.given] if self.given else []
        inputs = [
            one for _, one in self.invokes if one is not self.given and (one.args or one.kwargs)
        ]
        options = self.options
        if given and inputs and not self.model._has_prompt(self.given):
            # as an image for all invokes
            given, options = [], {**options, **self.given.kwargs}
        if given and inputs:
            raise InvokeError(
                "this trace has its own input, and invokes with inputs inside; give the "
                "input to an invoke instead: 'with model.trace() as tracer:'"
            )
        inputs = given or inputs
        if not inputs and self.runs_empty():
            return self.run_on((), dict(options))
        if not inputs:
            raise messages.no_input()
        try:
            batch = self.model._merged(inputs, self.function, options)
        except InputError as error:
            raise self._placed(error, inputs) from error.__cause__
        if len(inputs) > 1:
            total = sum(batch.counts)
            repeats = self.model._row_repeats(self.function, batch.kwargs)
            start = 0
            for number, (one, count) in enumerate(zip(inputs, batch.counts, strict=True)):
                one.rows = Rows(start, count, total, number, repeats, self.model._has_sequences)
                start += count
            driver.counts = batch.counts
        else:
            inputs[0].rows = None
        factors = self.model._row_factors(self.function, batch.kwargs)
        driver.factor, driver.result_factor = factors
        return self.run_on(batch.args, batch.kwargs)

    def _driver(self) -> Driver:
        if self.driver is None:
            raise InternalError("a run has no driver yet")
        return self.driver

    def _placed(self, error: InputError, inputs: Sequence[Input]) -> InputError:
        """Let an error about the input of an invoke come from the line of that invoke."""
        if error.number is not None:
            for machine, one in self.invokes:
                program = machine.program
                if one is inputs[error.number] and program.kind == "invoke":
                    place = traceback_at(program.filename, program.line, program.name)
                    return error.with_traceback(place)
        return error

    def run_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand all machines to the driver, and run the model on some arguments."""
        driver = self._driver()
        is_plain = True
        for machine, one in self.invokes:
            machine.rows = one.rows
            driver.add(machine)
            if machine.program.fetched:
                self._check_sharing(machine)
            is_plain = is_plain and machine.is_plain
        if self.order is not None:
            driver.expect_anything()
            driver.watchers.append(self.order)
        if isinstance(driver, Stopping) and not self.is_fake:
            driver.points = stop_points(self.model._module, args, kwargs)
        if is_plain:
            result = driver.run(self.called(), args, kwargs)
        else:
            depth = len(driver.record)
            driver.record.append((unmount, driver))
            try:
                mount(driver)
                result = driver.run(self.called(), args, kwargs)
            finally:
                driver.record.undo(depth)
        if self.order is not None and driver.failure is None:
            self.order.finish()
        if driver.failure is not None:
            explain_failure(self.model, driver.failure)
        return result

    def called(self) -> Any:
        """Return the function that the run calls."""
        if self.fn is not None:
            return self.fn
        if self.is_fake:
            module = faked(self.model._module)
            if self.function == "generate":
                return lambda **kwargs: module(**self.model._first_step(kwargs))
            return module
        function = self.model._function(self.function)
        if self.model._streams(self.function):
            return streaming(self._driver(), function)
        return function

    def _check_sharing(self, machine: Machine) -> None:
        unsynchronised = machine.program.unsynchronised
        if unsynchronised and not self.has_barrier:
            name = min(unsynchronised)
            raise SharedNameError(
                f"the invoke at line {machine.program.line} reads {name!r}, which an earlier "
                "invoke binds more than once or in a loop, so nothing says which value is meant; "
                "let both wait at a tracer.barrier(2), after the binding and before the read"
            )
        if machine.program.fetched and not CONFIG.APP.CROSS_INVOKER:
            raise SharedNameError(
                f"the invoke at line {machine.program.line} reads "
                f"{min(machine.program.fetched)!r} of another invoke, and "
                "CONFIG.APP.CROSS_INVOKER is off; switch it on, or save the value in a trace of "
                "its own"
            )
