"""Traces: one `with model.trace(...)` block and the run of the model that it causes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from nnsight_dsl.blocks.block import Block
from nnsight_dsl.config import CONFIG
from nnsight_dsl.envoys.envoy import Envoy, explain_shadowed
from nnsight_dsl.envoys.ports import StepKey
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.driving.early_stop import Stopping
from nnsight_dsl.runtime.driving.log import Log, Served
from nnsight_dsl.runtime.errors import (
    BarrierError,
    InputError,
    InvokeError,
    NotRunningError,
    SharedNameError,
)
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.barriers import Barrier
from nnsight_dsl.runtime.machines.machine import Machine, current_machine
from nnsight_dsl.runtime.machines.saved import Saved
from nnsight_dsl.runtime.machines.steps import StepSpec
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tracebacks import raising_at_user, released, towards_user, traceback_at
from nnsight_dsl.runtime.turns import Turn
from nnsight_dsl.runtime.values.elements import without_aliasing
from nnsight_dsl.runtime.values.rows import Rows
from nnsight_dsl.studies.plan import Plan, PlanLog, plan_of
from nnsight_dsl.studies.scan import CANNOT_TELL, faked, stop_points
from nnsight_dsl.tracing.cache import Cache, converter
from nnsight_dsl.tracing.edit import KeptEdit
from nnsight_dsl.tracing.guards import Fit, fit_of
from nnsight_dsl.tracing.runnable import Input, Runnable
from nnsight_dsl.tracing.saving import INJECTED
from nnsight_dsl.tracing.tensor_save import explain_helpers, mount, unmount
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.names import OUTER
from nnsight_dsl.transforms.program import Program

Driver.mount, Driver.unmount = staticmethod(mount), staticmethod(unmount)


_ALL_ROWS = Input(())
"""What runs on the rows of all inputs, and on none of its own."""


class BarrierCall:
    """What `tracer.barrier(n)` returns: call it in each of the `n` invokes that take part."""

    def __init__(self, barrier: Barrier) -> None:
        self._barrier = barrier

    def __call__(self) -> None:
        """Wait here until all participants have come.

        Raises:
            BarrierError: the run ended before they had, or this is called outside of an invoke.
        """
        machine = current_machine()
        if machine is None:
            raise messages.barrier_in_builder()
        machine.request((requests.MEET, self._barrier))


class Tracer(Block, Place):
    """One run of a model, and the blocks that take part in it.

    Use it as `with model.trace(...) as tracer:`. Its methods are for use inside of the block.
    """

    _module = None
    _path = "tracer"
    _parent = None

    # what holds for most traces stands on the class, so that making a tracer is cheap
    _driver: Driver | None = None
    _has_barrier = False
    _order: Any = None
    _result: Any = None
    _leaves_all = False
    _is_scan = False
    _is_validated = False
    _outer_now: Any = None
    _log: Log | None = None
    _interventions: tuple[Any, ...] = ()
    _stops = False
    _is_planned = False
    _plan: Plan | None = None
    _last: tuple[Place, str] | None = None

    def __init__(
        self,
        model: Runnable,
        function: str,
        given: Input | tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        self._model = model
        self._function = function
        if isinstance(given, tuple):
            self._args = given
        else:
            self._given, self._args = given, given.args
        self._options = options
        self._saved = Saved()
        if options:
            self._log = Log() if options.pop("log", False) else None
            # either word asks for the same: a run on fake tensors before the real one
            flags = [bool(options.pop(word, False)) for word in ("scan", "validate")]
            self._is_validated = any(flags)
            self._interventions = tuple(options.pop("interventions", ()))

    @cached_property
    def _given(self) -> Input:
        """What the trace itself runs on, made when somebody asks: most runs need the tuple only."""
        return Input(self._args)

    @cached_property
    def _invokes(self) -> list[tuple[Machine, Input]]:
        """What runs, and on what."""
        return []

    @cached_property
    def _fits(self) -> list[Fit]:
        """What is known of the programs that run, but for what their values are like."""
        return []

    @cached_property
    def _beside(self) -> list[Machine]:
        """What of that runs beside the blocks."""
        return []

    # for the user

    def invoke(self, *args: Any, **kwargs: Any) -> Invoker:
        """Add an input to the batch, with a block of its own that sees only that input's rows.

        Without an input, the block sees the rows of all.

        Args:
            *args: one input, as for `model.trace`.
            **kwargs: arguments of the model for this input, as `attention_mask`, and for a
                language model options of its tokenizer, as `truncation`.

        Returns:
            The invoke, to be used in a `with` statement directly in the trace.

        Raises:
            InvokeError: an invoke is already running.
            InputError: at the end of the trace, from this line: a language model cannot run on it.

        Example:
            >>> with model.trace() as tracer:
            ...     with tracer.invoke("The cat"):
            ...         first = model.lm_head.output.save()     # [1, tokens, vocabulary]
            ...     with tracer.invoke("A bird"):
            ...         model.transformer.h[0].output[:] = 0    # the rows of this input alone
        """
        return Invoker(self, Input(args, kwargs))

    def barrier(self, participants: int) -> BarrierCall:
        """Make a point that several invokes pass together.

        Args:
            participants: the number of invokes that call it before any of them goes on.

        Returns:
            A function without arguments, to be called in each of these invokes.

        Raises:
            BarrierError: the number is less than 1.

        Example:
            >>> with model.trace() as tracer:
            ...     meet = tracer.barrier(2)
            ...     with tracer.invoke("The cat"):
            ...         hidden = model.transformer.h[3].output
            ...         meet()
            ...     with tracer.invoke("A bird"):
            ...         meet()
            ...         model.transformer.h[3].output[:, -1] = hidden[:, -1]
        """
        if participants < 1:
            raise BarrierError(
                f"a barrier for {participants} invokes was asked for; at least 1 takes part"
            )
        self._has_barrier = True
        return BarrierCall(Barrier(participants))

    def stop(self) -> None:
        """End this block here; the model stops when no other block waits for it.

        Raises:
            NotRunningError: no block is running here.
            InvokeError: it is called outside of the invokes, in a trace that has some.
        """
        machine = current_machine()
        if machine is None:
            raise towards_user(messages.outside("tracer.stop()"))
        machine.request((requests.STOP,))

    @property
    def iter(self) -> StepKey:
        """Steps of a generation, as in `for step in tracer.iter[1:3]:`."""
        return StepKey()

    def all(self) -> StepSpec:
        """All steps, as `tracer.iter[:]`.

        Returns:
            The steps, to be looped over: `for step in tracer.all():`.
        """
        return StepSpec(slice(None))

    def next(self) -> Tracer:
        """Move this block to its next step.

        Returns:
            The tracer.

        Raises:
            NotRunningError: no block is running here.
        """
        machine = current_machine()
        if machine is None:
            raise towards_user(messages.outside("tracer.next()"))
        machine.step += 1
        return self

    def cache(
        self,
        modules: Iterable[Envoy | str] | Envoy | str | None = None,
        *,
        device: Any = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
    ) -> Cache:
        """Keep the outputs of many modules, from here to the end of the run.

        The cache saves itself: the name it is bound to leaves the block.

        Args:
            modules: envoys or paths, or one of them; all modules if left out. A list of modules of
                the model, as `model.transformer.h`, stands for the modules in it.
            device: where the copies are kept; None leaves them where they are.
            dtype: what floating-point tensors are converted to.
            detach: keep them without their graph.
            include_output: keep outputs.
            include_inputs: keep `(args, kwargs)`.

        Returns:
            The cache: by path, the outputs of each visit.

        Raises:
            InputError: an item of `modules` is neither an envoy of this model nor a path.
            PathError: there is no module at a path.
            NotRunningError: no block is running here.

        Example:
            >>> with model.trace("Hello") as tracer:
            ...     cache = tracer.cache(modules=model.transformer.h)
            >>> cache["transformer.h.0"].output.shape
            torch.Size([1, 1, 768])
        """
        machine = current_machine()
        if machine is None or self._driver is None:
            raise towards_user(messages.outside("tracer.cache()"))
        found = None
        if modules is not None:
            envoys = self._places_of(modules)
            for envoy in envoys:
                envoy._refresh()
            found = {id(envoy._module) for envoy in envoys}
        self._driver.watch_for([self._model] if modules is None else envoys, machine)
        cache = Cache(
            self._model,
            found,
            machine.rows,
            converter(device, dtype, detach=detach),
            keeps_output=include_output,
            keeps_inputs=include_inputs,
        )
        self._driver.watchers.append(cache)
        machine.saved.add(cache)
        return cache

    def _places_of(self, modules: Any) -> list[Place]:
        """Return the envoys and operations that a cache is to be kept of."""
        is_one = isinstance(modules, (str, nn.Module)) or not isinstance(modules, Iterable)
        if isinstance(modules, Envoy):
            is_one = not isinstance(modules._module, (nn.ModuleList, nn.ModuleDict))
        given: list[Any] = [modules] if is_one else list(modules)
        found: list[Place] = []
        for one in given:
            envoy: Any = self._model.get(one) if isinstance(one, str) else one
            if isinstance(one, nn.Module):
                envoy = self._model._mirror_of(one)
            if not isinstance(envoy, (Envoy, OperationPlace)):
                raise InputError(
                    f"modules= has {type(one).__name__} {one!r:.80}, which is no module of this "
                    "model; give paths ('transformer.h.0') or envoys (model.transformer.h[0])"
                )
            found.append(envoy)
        return found

    @property
    def log(self) -> list[Served]:
        """What was served to the blocks of this run, in order; for `model.trace(..., log=True)`.

        Raises:
            NotRunningError: the log was not asked for.
        """
        if self._log is None:
            raise NotRunningError(
                "this run keeps no log; write model.trace(..., log=True) to have one"
            )
        return self._log.entries

    def plan(self) -> Plan:
        """What this run serves and keeps; for `model.plan(...)` and `model.trace(..., plan=True)`.

        It is there from the first line of the block on. On fake tensors, while it is being made, a
        block finds in it the values that have been served so far.

        Returns:
            The plan.

        Raises:
            NotRunningError: the plan was not asked for, or the block has not been entered.
        """
        if self._driver is not None and isinstance(self._driver.log, PlanLog):
            return plan_of(self._driver.log, {}, None)
        if self._plan is None:
            raise NotRunningError(
                "this run has no plan; write model.trace(..., plan=True) to have one made before "
                "it, or model.plan(...) in its place to have only that"
            )
        return self._plan

    @property
    def result(self) -> Any:
        """What the traced function returned: the model's output, or the generated token ids."""
        machine = current_machine()
        if machine is None:
            raise towards_user(messages.outside("tracer.result"))
        return machine.request((requests.READ, self, "result"))

    # running

    def _run_inside(
        self,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        saved: Saved,
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Run as a block of another block, to which all names leave, saved or not."""
        self._saved, own = saved, self._saved
        self._leaves_all = True
        try:
            return self._finished(program, user_globals, names)
        finally:
            self._saved = own

    def _run_alone(self, intervention: Any) -> Any:
        """Run the model with one intervention and no block; return what it returns."""
        names = intervention.names({"model": self._model, "tracer": self})
        program, user_globals = intervention.program, intervention.user_globals
        _, failure = self._finished(program, user_globals, names)
        if failure is not None:
            try:
                raise released(failure)
            finally:
                # the traceback has this frame
                del failure
        return self._result

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        self._outer_now = getattr(names, "now", self._outer_now)
        if CONFIG.APP.LINT != "off" and program not in self._model._linted:
            failure = self._linted(program, user_globals, names)
            if failure is not None:
                return {}, failure
        if self._is_validated or self._is_planned:
            failure = self._validated(program, user_globals, names)
            if failure is not None:
                return {}, failure
        return self._run_once(program, user_globals, names)

    def _run_once(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        if not self._is_scan:
            self._model._prepare()
        turn = Turn(self._model._family)
        try:
            turn.begin()
            driver = self._driver = self._new_driver(turn)
            if self._is_scan and driver.is_stepped:
                driver.is_partial = True
            if self._log is not None:
                driver.log = self._log
            machine = self._machine_of(program, user_globals, names)
            if self._model._edits or self._interventions:
                self._start_beside(driver)
            if not program.children or not program.has_invokes:
                is_alone = self._given or self._runs_empty()
            else:
                is_alone = False
            if is_alone:
                self._invokes.append((machine, self._given))
                self._run_model(driver)
            else:
                machine.is_builder = True
                driver.build(machine)
                if driver.failure is None:
                    self._run_model(driver)
        finally:
            self._driver = None
            try:
                turn.end()
            except BaseException:
                turn.end()
                raise
        if driver.failure is None:
            for fit in self._fits:
                fit.is_tried = True
        self._fits = []
        self._result = machine.result
        self._last = driver.last if isinstance(driver, Stopping) else None
        left = machine.leaving(machine.names) if machine.is_builder else {}
        for other in driver.machines:
            # what runs beside the blocks has names of its own, which are not the user's here
            if other.names and other not in self._beside:
                left.update(other.names)
        # the user may keep the tracer; what the blocks saved is the user's alone from here on
        self._invokes = []
        self._beside = []
        if not self._leaves_all:
            self._saved.clear()
        return left, driver.failure

    def _linted(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> BaseException | None:
        """Check a program before its first run on this wrapper; return what has to be raised."""
        from nnsight_dsl.lint import at_run

        def value_of(name: str) -> Any:
            return program.initial(name, user_globals, names, fall_back=True)

        raises = CONFIG.APP.LINT == "error"
        failure = at_run.check(
            program, self._model, value_of, raises=raises, all_leave=self._leaves_all
        )
        if failure is None:
            self._model._linted.add(program)
            if self._stops:
                # the order is recorded to the end of a forward
                return None
            self._order = at_run.OrderWatcher.for_first_run(self._model)
        return failure

    def _validated(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> BaseException | None:
        """Run on fake tensors first; return what the block raises there.

        Of a generation that is the first step. The containers of the enclosing function are
        copied for it, so that nothing fake is left in them.
        """
        own = self._saved, self._log, self._outer_now
        log = PlanLog() if self._is_planned else None
        self._saved, self._log, self._is_scan = Saved(), log, True
        now = self._outer_now
        if now is not None:
            self._outer_now = lambda name: without_aliasing(now(name))
        copies = {name: without_aliasing(value) for name, value in names.items()}
        try:
            left, failure = self._run_once(program, user_globals, copies)
            if log is not None and failure is None:
                self._plan = plan_of(log, left, self._last)
        except BaseException as error:
            failure = error
        finally:
            self._saved, self._log, self._outer_now = own
            self._is_scan = self._has_barrier = False
            self._invokes = []
        if failure is not None and isinstance(failure, CANNOT_TELL):
            # values decide what this model does next, and fake tensors have none
            return None
        return failure

    def _runs_empty(self) -> bool:
        """Tell whether the model can be called without any input."""
        return self._function == "trace" and self._model._runs_empty(self._options)

    def _new_driver(self, turn: Turn) -> Driver:
        model = self._model
        stepping = model._stepping() if self._function == "generate" else None
        kind = Stopping if self._stops or (self._is_planned and self._is_scan) else Driver
        driver = kind(model, stepping)
        driver.record = turn.record
        return driver

    def _run_model(self, driver: Driver) -> Any:
        given = [self._given] if self._given else []
        inputs = [
            one for _, one in self._invokes if one is not self._given and (one.args or one.kwargs)
        ]
        options = self._options
        if given and inputs and not self._model._has_prompt(self._given):
            # as an image for all invokes
            given, options = [], {**self._options, **self._given.kwargs}
        if given and inputs:
            raise InvokeError(
                "this trace has an input of its own, and invokes with inputs inside; give the "
                "input to an invoke instead: 'with model.trace() as tracer:'"
            )
        inputs = given or inputs
        if not inputs and self._runs_empty():
            return self._run_on(driver, (), dict(self._options))
        if not inputs:
            raise messages.no_input()
        try:
            batch = self._model._batch(inputs, self._function, options)
        except InputError as error:
            raise self._placed(error, inputs) from error.__cause__
        if len(inputs) > 1:
            total = sum(batch.counts)
            start = 0
            for number, (one, count) in enumerate(zip(inputs, batch.counts, strict=True)):
                one.rows = Rows(start, count, total, number)
                start += count
            driver.counts = batch.counts
        else:
            inputs[0].rows = None
        factors = self._model._row_factors(self._function, batch.kwargs)
        driver.factor, driver.result_factor = factors
        return self._run_on(driver, batch.args, batch.kwargs)

    def _placed(self, error: InputError, inputs: Sequence[Input]) -> InputError:
        """Let an error about the input of an invoke come from the line of that invoke."""
        if error.number is not None:
            for machine, one in self._invokes:
                program = machine.program
                if one is inputs[error.number] and program.kind == "invoke":
                    place = traceback_at(program.filename, program.line, program.name)
                    return error.with_traceback(place)
        return error

    def _run_on(self, driver: Driver, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand all machines to the driver, and run the model."""
        is_plain = True
        for machine, one in self._invokes:
            machine.rows = one.rows
            driver.add(machine)
            if machine.program.fetched:
                self._check_sharing(machine)
            is_plain = is_plain and machine.is_plain
        if self._order is not None:
            driver.expect_anything()
            driver.watchers.append(self._order)
        if self._stops and isinstance(driver, Stopping) and not self._is_scan:
            driver.points = stop_points(self._model._module, args, kwargs)
        if is_plain:
            result = driver.run(self._called(), args, kwargs)
        else:
            depth = len(driver.record)
            driver.record.append((unmount, driver))
            try:
                mount(driver)
                result = driver.run(self._called(), args, kwargs)
            finally:
                driver.record.undo(depth)
        if self._order is not None and driver.failure is None:
            self._order.finish()
        if driver.failure is not None:
            self._explain_failure(driver.failure)
        return result

    def _explain_failure(self, error: BaseException) -> None:
        explain_helpers(error)
        explain_shadowed(self._model, error)
        self._model._explain(error)
        self._explain(error)

    def _explain(self, error: BaseException) -> None:
        """Add what the kind of this run says about an error."""

    def _called(self) -> Any:
        """Return the function that the run calls."""
        if self._is_scan:
            module = faked(self._model._module)
            if self._function == "generate":
                return lambda **kwargs: module(**self._model._first_step(kwargs))
            return module
        return self._model._function(self._function)

    def _check_sharing(self, machine: Machine) -> None:
        unsynchronised = machine.program.unsynchronised
        if unsynchronised and not self._has_barrier:
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

    @raising_at_user
    def _run_without_block(self) -> Any:
        """Run the model with its edits and the interventions given, and return its output."""
        model = self._model
        if not model._edits and not self._interventions:
            model._prepare()
            batch = model._batch([self._given], self._function, self._options)
            return model._function(self._function)(*batch.args, **batch.kwargs)
        model._prepare()
        turn = Turn(model._family)
        try:
            turn.begin()
            driver = self._new_driver(turn)
            self._start_beside(driver)
            result = self._run_model(driver)
        finally:
            try:
                turn.end()
            except BaseException:
                turn.end()
                raise
        failure, driver.failure = driver.failure, None
        if failure is not None:
            try:
                raise released(failure)
            finally:
                # the traceback has this frame
                del failure
        return result

    @raising_at_user
    def _run_without_block_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model with its edits, on arguments of its own forward."""
        self._model._prepare()
        turn = Turn(self._model._family)
        try:
            turn.begin()
            driver = Driver(self._model)
            driver.record = turn.record
            self._start_beside(driver)
            result = self._run_on(driver, args, kwargs)
        finally:
            try:
                turn.end()
            except BaseException:
                turn.end()
                raise
        failure, driver.failure = driver.failure, None
        if failure is not None:
            try:
                raise released(failure)
            finally:
                # the traceback has this frame
                del failure
        return result

    def _start_beside(self, driver: Driver) -> None:
        """Start what runs before the blocks and on all rows: the edits, then the interventions."""
        for edit in self._model._edits:

            def start(edit: KeptEdit = edit) -> Machine:
                return self._started(self._machine_of(edit.program, edit.user_globals, edit.names))

            self._invokes.append((start(), _ALL_ROWS))
            if driver.is_stepped and edit.is_for_each_step:
                driver.each_step.append(start)
        for one in self._interventions:
            self._invokes.append((self._started(self._machine_beside(one)), _ALL_ROWS))

    def _machine_beside(self, intervention: Any) -> Machine:
        """Start an intervention that runs beside the block, before it and on all rows."""
        names = intervention.names({"model": self._model, "tracer": self})
        return self._machine_of(intervention.program, intervention.user_globals, names)

    def _machine_of(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> Machine:
        fit = fit_of(self._model, self._model._fits, program, user_globals, names)
        seen = fit.seen
        is_usual = self._outer_now is None
        if fit.roots:
            seen = {**seen}
            for name in fit.roots:
                seen[name] = program.initial(name, user_globals, names, fall_back=True)
        machine = Machine.start(
            program,
            user_globals,
            names,
            self._saved,
            INJECTED if is_usual else {**INJECTED, OUTER: self._outer_now},
            is_plain=fit.is_plain,
            function=fit.function if is_usual else None,
        )
        machine.seen_names = seen
        if self._leaves_all:
            machine.leaves_all = True
        machine.needs = fit.needs
        if not fit.is_tried:
            # values of unknown types may bring code along that asks for any module
            machine.needs = replace(fit.needs, is_closed=False)
            self._fits.append(fit)
        return machine

    def _started(self, machine: Machine) -> Machine:
        self._beside.append(machine)
        return machine

    def _add(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any], one: Input
    ) -> None:
        running = current_machine()
        if self._driver is None or (running is not None and not running.is_builder):
            raise messages.nested_invoke()
        self._invokes.append((self._machine_of(program, user_globals, names), one))


class Invoker(Block):
    """One invoke: an input of a batched run, with a block of its own."""

    def __init__(self, tracer: Tracer, given: Input) -> None:
        self._tracer = tracer
        self._given = given

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        # the frame's namespace lives on, the invoke starts from what it holds now
        self._tracer._add(program, user_globals, dict(names), self._given)
        return {}, None

    def _add_to_run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> None:
        self._tracer._add(program, user_globals, names, self._given)
