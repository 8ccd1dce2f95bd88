"""A run: the programs of one request, from its first forward to its outcome.

Requests arrive and finish while the engine runs, and each counts its own steps. So each request
with programs has a `Run` with a driver, as if it ran alone:

    start           unpack the payload, run each program to its first request for a value
    begin_step      once in each forward that computes new tokens
    offer           in each visit of a place where a program waits
    offer_place     for the logits and the samples
    finish          serve `tracer.result`, close the programs, collect the outcome

The engine calls these from inside of a forward that serves other requests, too. So an exception in
a program ends the programs of its request and nothing else: the forward continues, the client finds
the request in `Engine.ended` and aborts it, and raises the exception.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from nnsight_dsl.modeling.vllm.client.effects import ANYTHING, Reach
from nnsight_dsl.modeling.vllm.engine.context import EngineContext
from nnsight_dsl.modeling.vllm.engine.portions import Portion
from nnsight_dsl.modeling.vllm.engine.request_driver import RequestDriver, RequestTap
from nnsight_dsl.modeling.vllm.engine.slots import Slot
from nnsight_dsl.modeling.vllm.engine.time_limit import OutOfTime
from nnsight_dsl.modeling.vllm.engine.token_spans import Span
from nnsight_dsl.modeling.vllm.payload import Outcome, Part, changed_in, load_parts, sizes_of
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.errors import InternalError, RunAborted, WriteError
from nnsight_dsl.runtime.locations import Place, places_at
from nnsight_dsl.runtime.machines.machine import Machine, set_current, unplain
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tracebacks import clean, traceback_at
from nnsight_dsl.runtime.values.elements import misfit
from nnsight_dsl.tracing.block_run import BlockRun
from nnsight_dsl.tracing.runnable import Input
from nnsight_dsl.tracing.tensor_save import explain_helpers, tensor_save
from nnsight_dsl.tracing.tracer import Tracer
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, Phase


class Run:
    """The programs of one request.

    Args:
        key: the client's key of the request.
        engine: the engine.
        reach: upper bound of the programs' effects, as the client has sent it.

    Attributes:
        key: the client's key of the request.
        engine: the engine.
        driver: the driver of the programs; None until `start` has made it.
        is_over: True once the programs are closed, by their end or an error. Set by `_close` only;
            never reset.
        reach: upper bound of the programs' effects; a write beyond it is an error.
        failure: the exception that ended the programs from outside of a machine; None without one.
        cannot_repeat: True once a program has made an edit that is not repeated after preemption:
            of an operation, or with several ranks. If the request is preempted, the engine ends
            its programs with an error.
        has_read: number of positions of the request that were offered, or kept for an offer.
        pieces: number of the prompt's pieces that are kept, to be offered with the last one.
    """

    def __init__(self, key: str, engine: EngineContext, reach: Reach = ANYTHING) -> None:
        self.key = key
        self.engine = engine
        self.reach = reach
        self.is_over = False
        self.has_read = 0
        self.cannot_repeat = False
        self.pieces = 0
        # edited logits and samples of the last step, in case its token is sampled again
        self._sampled: dict[str, torch.Tensor] = {}
        self.failure: BaseException | None = None
        self.driver: RequestDriver | None = None
        # the machine of the block, which is the last part; the outcome has its names
        self._block: Machine | None = None
        # the names around the block, and the lengths of the containers among them at the start
        self._around: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        # patches of torch (`tensor.save()`), in force until `_close`
        self._patches = ExitStack()

    def start(self, payload: bytes) -> None:
        """Lower the programs of a payload, and run each to its first request for a value."""
        try:
            with self.engine.limit:
                self._load(payload)
        except BaseException as error:
            # what is unpickled may raise anything, SystemExit too
            clean(error)
            self.fail(error)
            return
        self._guarded(self._begin)

    def _load(self, payload: bytes) -> None:
        data, root = self.engine.opened(payload)
        self.driver = RequestDriver(root, self.engine)
        tracer = Tracer(root, "generate", Input(()), {})
        run = tracer._block_run = tracer._new_run()
        run.driver = self.driver
        parts = load_parts(data, root, tracer)
        for part in parts:
            self._add(part, run)
        self._around = parts[-1].names
        self._sizes = sizes_of(self._around)

    def _add(self, part: Part, run: BlockRun) -> None:
        driver = self.driver
        if driver is None:
            raise InternalError("a run has no driver yet")

        order = len(driver.machines)

        def make() -> Machine:
            machine = _machine_of(part, run)
            # an edit is made anew in each step; its order keeps it before the block
            machine.order = order
            return machine

        machine = self._block = make()
        driver.machines.append(machine)
        _expect(driver, machine)
        if part.is_for_each_step:
            driver.each_step.append(make)

    def _begin(self, driver: RequestDriver) -> None:
        if not all(machine.is_plain for machine in driver.machines):
            self._patches.enter_context(tensor_save())
        driver._tap_ahead()
        for machine in list(driver.machines):
            if not machine.is_done and machine.pending is None:
                driver.drive(machine, None)

    def _guarded(self, call: Callable[[RequestDriver], object]) -> None:
        """Call a function with the driver, within the time limit.

        An exception ends the programs, and never reaches the engine. If the programs are over,
        nothing is called.
        """
        driver = self.driver
        if self.is_over or driver is None:
            return
        outer = set_current(None)
        self.engine.serving = driver
        try:
            with self.engine.limit:
                call(driver)
            if driver.is_stopped and driver.may_stop():
                self._close()
        except RunAborted:
            self._close()
        except (Exception, OutOfTime) as error:
            clean(error)
            self.fail(error)
        finally:
            self.engine.serving = None
            set_current(outer)

    # called by the engine's taps

    def begin_step(self, missed: str) -> None:
        """Begin a step, in a forward that computes new tokens of this request.

        Args:
            missed: the error message for a module that is asked for in this step, if part of the
                prompt was computed without being offered; empty otherwise.
        """
        if self.driver is not None:
            self.driver.missed = missed
            self.driver.forward = self.engine.forward
        self._guarded(Driver.begin_step)

    def edit_again(
        self, tap: RequestTap, visit: tuple[str, int], value: Any, slot: Slot[Run], fresh: set[int]
    ) -> Any:
        """Repeat the edits of recomputed tokens; return the engine's value with them.

        Args:
            tap: the request's tap on the place.
            visit: the phase, and the number of the call in its forward.
            value: the engine's value.
            slot: the request's slot.
            fresh: ids of tensors in the value that are copies already.
        """
        edits = tap.edits.get(visit)
        if not edits:
            return value
        portion = Portion(tap.place._module, value, slot.again, fresh, visit[0])
        return portion.edit_again(edits, slot.first)

    def keep_piece(self, tap: RequestTap, phase: str, value: Any, span: Span) -> None:
        """Keep the values of a piece of the prompt, for an offer with the last piece."""
        for port in tap.ports:
            if (port in ("input", "inputs")) != (phase == INPUTS):
                continue
            kept = tap.pieces.setdefault(port, [])
            if len(kept) < self.pieces:
                # the first visit of the module in this forward; later ones are not offered
                portion = Portion(
                    tap.place._module, value, span, set(), phase, weights=self.engine.weights
                )
                self._guarded(partial(_keep_seen, kept, portion, port))

    def forget_pieces(self) -> None:
        """Drop the kept pieces, after the whole prompt has been offered."""
        self.pieces = 0
        for tap in self.driver._taps.values() if self.driver is not None else ():
            if isinstance(tap, RequestTap):
                tap.pieces.clear()

    def offer(
        self, tap: RequestTap, visit: tuple[str, int], value: Any, slot: Slot[Run], fresh: set[int]
    ) -> Any:
        """Offer the request's part of a value, if a program waits for it.

        Args:
            tap: the request's tap on the place.
            visit: the phase, and the number of the call in its forward.
            value: the engine's value.
            slot: the request's slot.
            fresh: ids of tensors in the value that are copies already.

        Returns:
            The engine's value with the programs' edits.
        """
        phase: Phase = INPUTS if visit[0] == INPUTS else OUTPUT
        if self.is_over or not (tap.wants(phase, tap.index) or (phase == OUTPUT and tap.skips)):
            return value
        leader = self.engine.leader
        ranks = None if leader is None else leader.visit(tap.place, phase, slot.span)
        is_operation = isinstance(tap.place, OperationPlace)
        portion = Portion(
            tap.place._module, value, slot.span, fresh, phase, ranks, self.engine.weights,
            is_operation=is_operation,
        )  # fmt: skip
        self.serve(tap, phase, portion)
        value = self.taken(tap, visit, value, slot, portion)
        if portion.is_edited and (ranks is not None or is_operation):
            self.cannot_repeat = True
        if portion.is_edited and ranks is not None:
            ranks.keep()
        return value

    def serve(self, tap: RequestTap, phase: Phase, portion: Portion) -> None:
        """Offer a portion to the programs that wait for it, after the skips of its output."""
        portion.is_read_only = not self.reach.may_write
        portion.earlier = tap.pieces
        if phase == OUTPUT and tap.skips:
            self._guarded(lambda _: _put_skips(tap, portion))
        self._guarded(lambda driver: driver.offer(tap, phase, portion))

    def taken(
        self, tap: RequestTap, visit: tuple[str, int], value: Any, slot: Slot[Run], portion: Portion
    ) -> Any:
        """Apply the programs' edits of their portion to a value; return the value.

        The edits are kept, to be repeated after preemption. If a program has failed, its edits of
        this value are dropped.
        """
        if self.failure is not None or (self.driver is not None and self.driver.failure):
            return value
        try:
            after = portion.finished(value)
        except Exception as error:
            self.fail(error)
            return value
        for edit in portion.edits:
            edit.first = slot.first_new
            tap.edits.setdefault(visit, []).append(edit)
        return after

    def refuse(self, tap: RequestTap, error: Exception) -> None:
        """Raise an error in programs that wait at a place, and in those that ask for it later."""
        tap.missing = error
        self._guarded(lambda driver: driver.fail_waiting(tap, error))

    def end_visit(self, tap: RequestTap, args: Any, kwargs: Any, output: Any, span: Span) -> None:
        """End a visit, and show it to the caches of the programs."""
        tap.end_visit()
        if self.driver is not None and self.driver.watchers:

            def watch(driver: RequestDriver) -> None:
                given, named = self._shown(tap, INPUTS, (args, kwargs), span)
                driver.watch(tap, given, named, self._shown(tap, OUTPUT, output, span))

            self._guarded(watch)

    def _shown(self, tap: RequestTap, phase: str, value: Any, span: Span) -> Any:
        """Return the view of a value for caches; `((), {})` for inputs that no cache keeps."""
        driver, leader = self.driver, self.engine.leader
        watchers = [] if driver is None else driver.watchers
        if phase == INPUTS and not any(getattr(one, "_keeps_inputs", True) for one in watchers):
            return (), {}
        ranks = None if leader is None else leader.visit(tap.place, phase, span)
        weights, is_operation = self.engine.weights, isinstance(tap.place, OperationPlace)
        return Portion(
            tap.place._module, value, span, set(), phase, ranks, weights, is_operation=is_operation
        ).seen(phase)

    def addresses(self, name: str) -> bool:
        """Return whether a program may ask for the logits or the samples, by the place's name."""
        driver = self.driver
        if self.is_over or driver is None:
            return False
        root: Any = driver.root
        return id(root._places[name]._module) in driver._taps

    def offer_place(self, name: str, value: torch.Tensor, is_again: bool = False) -> torch.Tensor:
        """Offer the request's logits or its sampled token; return the value to continue with.

        Args:
            name: `"logits"` or `"samples"`.
            value: the engine's value: logits [1, vocabulary], or token ids [1].
            is_again: True if the token was sampled before, and is sampled again after preemption.
                Then nothing is offered, and an edit of the first time is repeated.

        Returns:
            The value itself, if no program has edited it; else a new tensor of the same shape.
        """
        driver = self.driver
        if self.is_over or driver is None:
            return value
        root: Any = driver.root
        place = root._places[name]
        tap = driver._taps.get(id(place._module))
        if not isinstance(tap, RequestTap):
            return value
        if is_again:
            return self._sampled.get(name, value)
        self._sampled.pop(name, None)
        tap.begin_visit()
        span = Span(0, 1, 1)
        portion = _Row(value, self.engine.n_tokens if name == "samples" else None)
        if not self.is_over and tap.wants(OUTPUT, tap.index):
            self._guarded(lambda driver: driver.offer(tap, OUTPUT, portion))
        try:
            portion.check(portion.row)
        except WriteError as error:
            self.fail(error)
        self.end_visit(tap, (), {}, value, span)
        if self.failure is not None or driver.failure is not None:
            return value
        if portion.is_edited:
            self._sampled[name] = portion.row.detach().clone()
        return portion.row

    # the end

    def finish(self, result: Any) -> Outcome:
        """Serve the request's result, close the programs, and return their outcome.

        Args:
            result: the `RequestOutput`, which `tracer.result` returns; None if it was aborted.
        """
        outcome = Outcome()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._guarded(partial(Driver._finish, result=result))
            self._close()
        for one in caught:
            outcome.warnings.append((str(one.message), one.category, one.filename, one.lineno))
        machine, driver = self._block, self.driver
        if machine is not None:
            outcome.names = machine.names
            outcome.saved = list(machine.saved.leaving(machine.names, machine.program))
            outcome.returned = machine.result
            outcome.changed = changed_in(self._around, self._sizes)
        outcome.failure = self.failure or (driver.failure if driver is not None else None)
        if outcome.failure is not None:
            explain_helpers(outcome.failure)
        return outcome

    def fail(self, error: BaseException) -> None:
        """End the programs with an error."""
        self.failure = self.failure or error
        self._close()

    def _close(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        try:
            if self.driver is not None:
                self._check_weights(self.driver)
                self.driver._close()
        finally:
            self._patches.close()

    def _check_weights(self, driver: RequestDriver) -> None:
        root: Any = driver.root
        for machine in driver.machines:
            where = root.edited_weight(machine)
            if where is not None and self.failure is None:
                self.failure = WriteError(
                    f"{where} was edited in a block, and the weights of an engine belong to all "
                    "its requests; the edit had no effect: write what modules are given and return"
                )


def _keep_seen(kept: list[Any], portion: Portion, port: str, driver: RequestDriver) -> None:
    kept.append(portion.seen(port))


def _put_skips(tap: RequestTap, portion: Portion) -> None:
    """Replace an output by the values of skips; an error gets the line of its skip."""
    for skip in tap.skips:
        try:
            portion.put("output", skip.value)
        except Exception as error:
            error.__traceback__ = traceback_at(skip.filename, skip.line, skip.function)
            raise
    tap.skips = []


class _Row:
    """A request's logits or sampled token as an offer: a `Portion` without spans and forms."""

    __slots__ = ("_handed", "_n_tokens", "_version", "row")

    def __init__(self, row: torch.Tensor, n_tokens: int | None) -> None:
        self._n_tokens = n_tokens
        with torch.inference_mode(False), torch.no_grad():
            self.row = self._handed = row.detach().clone()
        self._version = self._handed._version

    @property
    def is_edited(self) -> bool:
        """True if the row was replaced, or edited in place."""
        return self.row is not self._handed or self._handed._version != self._version

    def seen(self, port: str) -> Any:
        return self.row

    def put(self, port: str, new: Any) -> None:
        difference = misfit(self.row, new)
        if difference is not None:
            raise WriteError(f"the value written is {difference}; make it fit")
        self.check(new)
        self.row = new

    def check(self, row: torch.Tensor) -> None:
        """Refuse tokens that the model has not: the next step would read beyond its embeddings."""
        n_tokens = self._n_tokens
        if n_tokens is None or (row is self._handed and row._version == self._version):
            return
        if not bool(((row >= 0) & (row < n_tokens)).all()):
            raise WriteError(
                f"the token written is {row.tolist()}, and the model has tokens 0 to "
                f"{n_tokens - 1}; write one of these"
            )


def _machine_of(part: Part, run: BlockRun) -> Machine:
    names = _Names(part.names)
    machine = run.machine_of(part.program, part.user_globals, names)
    if machine.is_plain and any(word in part.program.source for word in (".logits", ".samples")):
        # `model.logits` without a port is a property, which waits for the value inside of a call;
        # a plain program has no stack that could wait there
        unplain(part.program)
        machine = run.machine_of(part.program, part.user_globals, names)
    machine.leaves_all = part.leaves_all
    return machine


class _Names(dict[str, Any]):
    """The names around a block, with their values when it was sent."""

    def now(self, name: str) -> Any:
        # a program calls this to look a name up in the frame around its block, which is not here
        if name not in self:
            raise NameError(f"name {name!r} was not bound when the block was sent", name=name)
        return self[name]


def _expect(driver: Driver, machine: Machine) -> None:
    """Announce to the driver the places that a program can ask for.

    They are those that its text names. If some are not known from the text, any may be asked for.
    """
    plain = machine.program.plain
    is_known = plain is not None and not plain.makes_cache
    for state in machine.program.states:
        start = machine.seen_name(state.root) if state.root is not None else None
        found = places_at(start, state.path) if isinstance(start, Place) else None
        if found is None:
            is_known = False
        else:
            driver.expect((place, state.port) for place in found)
    if not is_known:
        driver.expect_anything()
