"""Traces: one `with model.trace(...)` block and the run of the model that it causes."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses import fake_tensor

from nnsight_dsl.block import Block
from nnsight_dsl.cache import Cache, converter
from nnsight_dsl.config import CONFIG
from nnsight_dsl.edit import KeptEdit
from nnsight_dsl.envoy import Envoy, explain_shadowed
from nnsight_dsl.mounts import explain_helpers, tensor_save
from nnsight_dsl.ports import StepKey
from nnsight_dsl.runtime import complaints
from nnsight_dsl.runtime.barriers import Barrier
from nnsight_dsl.runtime.driver import Driver
from nnsight_dsl.runtime.errors import (
    BarrierError,
    InvokeError,
    NotRunningError,
    SharedNameError,
)
from nnsight_dsl.runtime.instruments import Log, Served
from nnsight_dsl.runtime.locations import Place, places_at
from nnsight_dsl.runtime.machine import Machine, current_machine, is_known_unplain
from nnsight_dsl.runtime.rows import Rows
from nnsight_dsl.runtime.saved import Saved
from nnsight_dsl.runtime.steps import StepSpec
from nnsight_dsl.runtime.turns import Turn
from nnsight_dsl.saving import INJECTED
from nnsight_dsl.scan import faked
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.names import MISSING, OUTER
from nnsight_dsl.transforms.program import Program

if TYPE_CHECKING:
    from nnsight_dsl.modeling.base import NNsight

_KNOWN_PLAIN = (
    Place, torch.Tensor, torch.dtype, torch.device, torch.Size, int, float, complex, str, bytes,
    range, slice, type(None), type(...),
    types.BuiltinFunctionType,
)  # fmt: skip
_CONTAINERS = (list, tuple, dict, set, frozenset)
_MOST_ITEMS = 64
"""How many items of a container are looked at before a block is taken for plain."""

_VALUES_WANTED = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
)
_CANNOT_TELL = (
    *_VALUES_WANTED,
    fake_tensor.UnsupportedFakeTensorException,
    NotImplementedError,
)
"""What fails on fake tensors alone."""

_PLAIN_MODULES = ("torch", "math", "operator", "itertools", "numpy")


@dataclass(slots=True)
class Input:
    """What one invoke runs on: the arguments given for it, and later its rows.

    Attributes:
        args: positional arguments, as the user gave them.
        kwargs: keyword arguments, as the user gave them.
        rows: its rows of the batch, None for all.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rows: Rows | None = None

    def __bool__(self) -> bool:
        return bool(self.args or self.kwargs)


@dataclass(frozen=True, slots=True)
class Batch:
    """One call of the model that runs several inputs.

    Attributes:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        counts: rows of each input, in order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    counts: tuple[int, ...]


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
            raise complaints.barrier_in_builder()
        machine.request((requests.MEET, self._barrier))


class Tracer(Block, Place):
    """One run of a model, and the blocks that take part in it.

    Use it as `with model.trace(...) as tracer:`. Its methods are for use inside of the block.
    """

    _module = None
    _path = "tracer"
    _parent = None

    def __init__(
        self, model: NNsight, function: str, given: Input, options: dict[str, Any]
    ) -> None:
        self._model = model
        self._function = function
        self._given = given
        self._options = options
        self._driver: Driver | None = None
        self._invokes: list[tuple[Machine, Input]] = []
        self._saved = Saved()
        self._has_barrier = False
        self._order: Any = None
        self._result: Any = None
        self._leaves_all = False
        self._is_scan = False
        self._beside: list[Machine] = []
        self._outer_now: Any = None
        self._all_rows = Input(())
        self._log = Log() if options.pop("log", False) else None
        # either word asks for the same: a run on fake tensors before the real one
        flags = [bool(options.pop(word, False)) for word in ("scan", "validate")]
        self._is_validated = any(flags)
        self._interventions: tuple[Any, ...] = tuple(options.pop("interventions", ()))

    # for the user

    def invoke(self, *args: Any, **kwargs: Any) -> Invoker:
        """Add an input to the batch, with a block of its own that sees only that input's rows.

        Without an input, the block sees the rows of all.

        Raises:
            InvokeError: an invoke is already running.
        """
        return Invoker(self, Input(args, kwargs))

    def barrier(self, participants: int) -> BarrierCall:
        """Make a point that `participants` invokes pass together.

        Raises:
            BarrierError: the number is not at least 1.
        """
        if participants < 1:
            raise BarrierError(
                f"a barrier for {participants} invokes was asked for; at least 1 takes part"
            )
        self._has_barrier = True
        return BarrierCall(Barrier(participants))

    def stop(self) -> None:
        """End this block here; the model stops when no other block waits for it."""
        machine = current_machine()
        if machine is None:
            raise complaints.outside("tracer.stop()")
        machine.request((requests.STOP,))

    @property
    def iter(self) -> StepKey:
        """Steps of a generation, as in `for step in tracer.iter[1:3]:`."""
        return StepKey()

    def all(self) -> StepSpec:
        """All steps, as `tracer.iter[:]`."""
        return StepSpec(slice(None))

    def next(self) -> Tracer:
        """Move this block to its next step."""
        machine = current_machine()
        if machine is None:
            raise complaints.outside("tracer.next()")
        machine.step += 1
        return self

    def cache(
        self,
        modules: Iterable[Envoy | str] | None = None,
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
            modules: envoys or paths; all modules if left out.
            device: where the copies are kept; None leaves them where they are.
            dtype: what floating-point tensors are converted to.
            detach: keep them without their graph.
            include_output: keep outputs.
            include_inputs: keep `(args, kwargs)`.
        """
        machine = current_machine()
        if machine is None or self._driver is None:
            raise complaints.outside("tracer.cache()")
        found = None
        if modules is not None:
            envoys = [self._model.get(one) if isinstance(one, str) else one for one in modules]
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

    @property
    def result(self) -> Any:
        """What the traced function returned: the model's output, or the generated token ids."""
        machine = current_machine()
        if machine is None:
            raise complaints.outside("tracer.result")
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
            raise failure
        return self._result

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        self._outer_now = getattr(names, "now", self._outer_now)
        if CONFIG.APP.LINT != "off" and program not in self._model._linted:
            failure = self._linted(program, user_globals, names)
            if failure is not None:
                return {}, failure
        if self._is_validated:
            failure = self._validated(program, user_globals, names)
            if failure is not None:
                return {}, failure
        return self._run_once(program, user_globals, names)

    def _run_once(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        if not self._is_scan:
            self._model._prepare()
        with Turn(self._model._family):
            driver = self._new_driver()
            driver.is_partial = self._is_scan and driver.is_stepped
            self._driver = driver
            driver.log = self._log
            machine = self._machine_of(program, user_globals, names)
            self._start_beside(driver)
            try:
                if (self._given or self._runs_empty()) and not program.has_invokes:
                    self._invokes.append((machine, self._given))
                    self._run_model(driver)
                else:
                    machine.is_builder = True
                    driver.build(machine)
                    if driver.failure is None:
                        self._run_model(driver)
            finally:
                self._driver = None
        self._result = machine.result
        left = machine.leaving(machine.names) if machine.is_builder else {}
        for other in driver.machines:
            # what runs beside the blocks has names of its own, which are not the user's here
            if other not in self._beside:
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
        self._saved, self._log, self._is_scan = Saved(), None, True
        now = self._outer_now
        if now is not None:
            self._outer_now = lambda name: _without_aliasing(now(name))
        copies = {name: _without_aliasing(value) for name, value in names.items()}
        try:
            _, failure = self._run_once(program, user_globals, copies)
        except BaseException as error:
            failure = error
        finally:
            self._saved, self._log, self._outer_now = own
            self._is_scan = self._has_barrier = False
            self._invokes = []
        if failure is not None and isinstance(failure, _CANNOT_TELL):
            # values decide what this model does next, and fake tensors have none
            return None
        return failure

    def _runs_empty(self) -> bool:
        """Tell whether the model can be called without any input."""
        return self._function == "trace" and self._model._runs_empty(self._options)

    def _new_driver(self) -> Driver:
        is_generation = self._function == "generate"
        return Driver(self._model, self._model._stepping() if is_generation else None)

    def _run_model(self, driver: Driver) -> Any:
        given = [self._given] if self._given else []
        inputs = [one for _, one in self._invokes if one and one is not self._given]
        if given and inputs:
            raise InvokeError(
                "this trace has an input of its own, and invokes with inputs inside; give the "
                "input to an invoke instead: 'with model.trace() as tracer:'"
            )
        inputs = given or inputs
        if not inputs and self._runs_empty():
            return self._run_on(driver, (), dict(self._options))
        if not inputs:
            raise complaints.no_input()
        batch = self._model._batch(inputs, self._function, self._options)
        total = sum(batch.counts)
        start = 0
        for one, count in zip(inputs, batch.counts, strict=True):
            one.rows = Rows(start, count, total) if len(inputs) > 1 else None
            start += count
        driver.factor = self._model._rows_per_row(batch.kwargs)
        return self._run_on(driver, batch.args, batch.kwargs)

    def _run_on(self, driver: Driver, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand all machines to the driver, and run the model."""
        for order, (machine, one) in enumerate(self._invokes):
            machine.order = order
            machine.rows = one.rows
            driver.machines.append(machine)
            self._check_sharing(machine)
            self._expect(driver, machine)
        is_plain = all(machine.is_plain for machine in driver.machines)
        if self._order is not None:
            driver.expect_anything()
            driver.watchers.append(self._order)
        with nullcontext() if is_plain else tensor_save():
            result = driver.run(self._called(), args, kwargs)
        if self._order is not None and driver.failure is None:
            self._order.finish()
        if driver.failure is not None:
            explain_helpers(driver.failure)
            explain_shadowed(self._model, driver.failure)
            self._explain(driver.failure)
        return result

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

    def _expect(self, driver: Driver, machine: Machine) -> None:
        """Tell the driver which places a block can ask for, as far as its text tells."""
        if not machine.is_plain:
            driver.expect_anything()
        for state in machine.program.states:
            start = machine.seen_name(state.root) if state.root is not None else None
            found = places_at(start, state.path) if isinstance(start, Place) else None
            if found is None:
                driver.expect_anything()
            else:
                driver.expect((place, state.port) for place in found)

    def _run_without_block(self) -> Any:
        """Run the model with its edits and the interventions given, and return its output."""
        model = self._model
        if not model._edits and not self._interventions:
            model._prepare()
            batch = model._batch([self._given], self._function, self._options)
            return model._function(self._function)(*batch.args, **batch.kwargs)
        model._prepare()
        with Turn(model._family):
            driver = self._new_driver()
            self._start_beside(driver)
            result = self._run_model(driver)
        if driver.failure is not None:
            raise driver.failure
        return result

    def _run_without_block_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model with its edits, on arguments of its own forward."""
        self._model._prepare()
        with Turn(self._model._family):
            driver = Driver(self._model)
            self._start_beside(driver)
            result = self._run_on(driver, args, kwargs)
        if driver.failure is not None:
            raise driver.failure
        return result

    def _start_beside(self, driver: Driver) -> None:
        """Start what runs before the blocks and on all rows: the edits, then the interventions."""
        for edit in self._model._edits:

            def start(edit: KeptEdit = edit) -> Machine:
                return self._started(self._machine_of(edit.program, edit.user_globals, edit.names))

            self._invokes.append((start(), self._all_rows))
            if driver.is_stepped and edit.is_for_each_step:
                driver.each_step.append(start)
        for one in self._interventions:
            self._invokes.append((self._started(self._machine_beside(one)), self._all_rows))

    def _machine_beside(self, intervention: Any) -> Machine:
        """Start an intervention that runs beside the block, before it and on all rows."""
        names = intervention.names({"model": self._model, "tracer": self})
        return self._machine_of(intervention.program, intervention.user_globals, names)

    def _machine_of(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> Machine:
        def value_of(name: str) -> Any:
            # names of an enclosing function that are no parameters are not read by the block
            return program.initial(name, user_globals, names, fall_back=True)

        is_plain = (
            program.plain is not None
            and not is_known_unplain(program)
            and all(_is_known_plain(value_of(name)) for name in program.plain.roots)
            and all(_is_known_path(value_of(name)) for name in program.plain.paths)
        )
        roots = {state.root for state in program.states if state.root is not None}
        machine = Machine(
            program,
            user_globals,
            names,
            self._saved,
            INJECTED if self._outer_now is None else {**INJECTED, OUTER: self._outer_now},
            is_plain=is_plain,
            seen_names={name: value_of(name) for name in roots},
        )
        machine.leaves_all = self._leaves_all
        return machine

    def _started(self, machine: Machine) -> Machine:
        self._beside.append(machine)
        return machine

    def _add(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any], one: Input
    ) -> None:
        running = current_machine()
        if self._driver is None or (running is not None and not running.is_builder):
            raise complaints.nested_invoke()
        self._invokes.append((self._machine_of(program, user_globals, names), one))


def _without_aliasing(value: Any) -> Any:
    """Copy a container, and those in it; return anything else as it is."""
    kind = type(value)
    if kind is dict:
        return {key: _without_aliasing(item) for key, item in value.items()}
    if kind in (list, tuple, set):
        return kind(_without_aliasing(item) for item in value)
    return value


def _is_known_plain(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        # an object in a container may have operators and properties of its own
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return len(items) <= _MOST_ITEMS and all(isinstance(one, _KNOWN_PLAIN) for one in items)
    if isinstance(value, _KNOWN_PLAIN):
        return True
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _PLAIN_MODULES
    return isinstance(value, type) and value.__module__ == "builtins" and value is not MISSING


def _is_known_path(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return _is_known_plain(value)
    return isinstance(value, Place)


class ScanTracer(Tracer):
    """A trace on fake tensors, of which all names leave."""

    def __init__(
        self, model: NNsight, function: str, given: Input, options: dict[str, Any]
    ) -> None:
        super().__init__(model, function, given, options)
        self._leaves_all = True
        # nothing has to be loaded
        self._is_scan = True

    def _explain(self, error: BaseException) -> None:
        if isinstance(error, _VALUES_WANTED):
            error.add_note(
                "a scan has shapes and no values, and here a value decides what comes next; trace "
                "in its place, or scan an input that takes another way"
            )


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
