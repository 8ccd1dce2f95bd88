"""Traces: one `with model.trace(...)` block and the run of the model that it causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch

from nnsight_dsl.blocks.block import Block
from nnsight_dsl.config import CONFIG
from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.ports import StepKey
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.driving.log import Log, Served
from nnsight_dsl.runtime.errors import (
    BarrierError,
    NotRunningError,
)
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.barriers import Barrier
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.machines.saved import Saved
from nnsight_dsl.runtime.machines.steps import StepSpec
from nnsight_dsl.runtime.tracebacks import raising_at_user, released, towards_user
from nnsight_dsl.runtime.values.elements import without_aliasing
from nnsight_dsl.studies.plan import Plan, PlanLog, plan_of
from nnsight_dsl.studies.scan import CANNOT_TELL
from nnsight_dsl.tracing.backends import HandedOver
from nnsight_dsl.tracing.barrier import BarrierCall
from nnsight_dsl.tracing.block_run import BlockRun, explain_failure
from nnsight_dsl.tracing.cache import Cache, converter, places_of
from nnsight_dsl.tracing.runnable import Input, Runnable
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.program import Program

_Run = TypeVar("_Run", bound=BlockRun)


class Tracer(HandedOver, Place):
    """One run of a model, and the blocks that take part in it.

    Use it as `with model.trace(...) as tracer:`. Its methods are for use inside of the block.
    """

    _module = None
    _path = "tracer"
    _parent = None

    _cache_class: type[Cache] = Cache

    # defaults for most traces are on the class, so that making a tracer is cheap
    _block_run: BlockRun | None = None
    """The run under way, set by `_done` and `_without_block`; None in the fast path."""
    _lone_driver: Driver | None = None
    """The driver of a run by the fast path, which sets it."""
    _result: Any = None
    _leaves_all = False
    _is_scan = False
    """True if the run itself is on fake tensors; set when the tracer is made."""
    _is_validated = False
    _outer_now: Any = None
    _order: Any = None
    _log: Log | None = None
    _interventions: tuple[Any, ...] = ()
    _fn: Callable[..., Any] | None = None
    """The function that is run in place of the model, if one was given."""
    _stops = False
    _is_planned = False
    _plan: Plan | None = None

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
            self._is_planned = bool(options.pop("plan", False))
            self._interventions = tuple(options.pop("interventions", ()))

    @cached_property
    def _given(self) -> Input:
        """The input of the trace itself, made on demand: most runs need only the tuple."""
        return Input(self._args)

    @property
    def _driver(self) -> Driver | None:
        """The driver of the run under way."""
        return self._lone_driver if self._block_run is None else self._block_run.driver

    # for the user

    def invoke(self, *args: Any, **kwargs: Any) -> Invoker:
        """Add an input to the batch, with a block that sees only that input's rows.

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
        if self._block_run is not None:
            self._block_run.has_barrier = True
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
                the model, as `model.transformer.h`, means the modules in it.
            device: where the copies are kept; None leaves them where they are.
            dtype: floating-point tensors are converted to it.
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
        envoys = None if modules is None else places_of(self._model._whole(), modules)
        found = None if envoys is None else {id(envoy._module) for envoy in envoys}
        self._driver.watch_for([self._model] if envoys is None else envoys, machine)
        cache = self._cache_class(
            self._model._whole(),
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

    def plan(self) -> Plan:
        """What this run serves and keeps; for `model.plan(...)` and `model.trace(..., plan=True)`.

        It is there from the first line of the block on. On fake tensors, while it is being made, a
        block finds in it the values that have been served so far.

        Returns:
            The plan.

        Raises:
            NotRunningError: the plan was not asked for, or the block has not been entered.
        """
        run = self._block_run
        if run is not None and isinstance(run.log, PlanLog):
            return plan_of(run.log, {}, None)
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
        """Run the model with one intervention and no block; return its return value."""
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
        return self._done(self._new_run(), program, user_globals, names)

    def _new_run(self, *, is_fake: bool = False) -> BlockRun:
        """Make a run of this trace."""
        return self._new_run_of(BlockRun, is_fake=is_fake)

    def _new_run_of(self, kind: type[_Run], *, is_fake: bool) -> _Run:
        is_fake = is_fake or self._is_scan
        return kind(
            self,
            self._model,
            self._function,
            self._given,
            self._options,
            self._saved,
            self._interventions,
            outer_now=self._outer_now,
            leaves_all=self._leaves_all,
            is_fake=is_fake,
            # a plan says where the forward could stop
            stops=self._stops or (self._is_planned and is_fake),
            log=self._log,
            order=self._order,
            fn=self._fn,
        )

    def _done(
        self,
        run: BlockRun,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Do a run, which the blocks find as the run under way."""
        self._block_run = run
        try:
            return run.run(program, user_globals, names)
        finally:
            self._block_run = None
            self._result = run.result

    def _linted(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> BaseException | None:
        """Check a program before its first run on this wrapper; return the error to raise."""
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
        """Run on fake tensors first; return the error that the block raises there.

        Of a generation that is the first step. The containers of the enclosing function are
        copied for it, so that nothing fake is left in them.
        """
        run = self._new_run(is_fake=True)
        run.saved, run.log, run.order = Saved(), PlanLog() if self._is_planned else None, None
        now = self._outer_now
        if now is not None:
            run.outer_now = lambda name: without_aliasing(now(name))
        copies = {name: without_aliasing(value) for name, value in names.items()}
        try:
            left, failure = self._done(run, program, user_globals, copies)
            if run.log is not None and failure is None:
                self._plan = plan_of(run.log, left, run.last)
        except BaseException as error:
            failure = error
        if failure is not None and isinstance(failure, CANNOT_TELL):
            # the model branches on values, and fake tensors have none
            return None
        return failure

    def _explain(self, error: BaseException) -> None:
        """Add notes to an error of a run whose cause is known."""
        explain_failure(self._model, error)

    @raising_at_user
    def _run_without_block(self) -> Any:
        """Run the model with its edits and the interventions given, and return its output."""
        model = self._model
        if not model._edits and not self._interventions:
            model._prepare()
            batch = model._merged([self._given], self._function, self._options)
            function = self._fn or model._function(self._function)
            return function(*batch.args, **batch.kwargs)
        return self._without_block(None)

    @raising_at_user
    def _run_without_block_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model with its edits, on the arguments of its forward."""
        return self._without_block((args, kwargs))

    def _without_block(self, arguments: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Any:
        run = self._block_run = self._new_run()
        try:
            return run.run_without_block(arguments)
        finally:
            self._block_run = None

    def _add(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any], one: Input
    ) -> None:
        running = current_machine()
        run = self._block_run
        if run is None or run.driver is None or (running is not None and not running.is_builder):
            raise messages.nested_invoke()
        run.invokes.append((run.machine_of(program, user_globals, names), one))


class Invoker(Block):
    """One invoke: an input of a batched run, with its block."""

    def __init__(self, tracer: Tracer, given: Input) -> None:
        self._tracer = tracer
        self._given = given

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        # the frame's namespace may change later; the invoke starts from its present values
        self._tracer._add(program, user_globals, dict(names), self._given)
        return {}, None

    def _add_to_run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> None:
        self._tracer._add(program, user_globals, names, self._given)
