"""A request's programs in the engine: one driver for each request that brings some.

Requests come and go while the engine runs, and each counts its own steps. So each has a driver of
its own, as if it ran alone; what is shared is only the tap on a module (see `engine.py`), which
offers every driver the part of a value that belongs to its request.

What goes wrong in a program ends the programs of its request. The request itself is served on,
and what happened is told at the client.
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
from nnsight_dsl.runtime.tapping.checkpoints import INPUTS, OUTPUT
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tracebacks import clean, traceback_at
from nnsight_dsl.runtime.values.elements import misfit
from nnsight_dsl.tracing.tensor_save import explain_helpers, tensor_save
from nnsight_dsl.tracing.tracer import Input, Tracer


class Run:
    """The programs of one request, from its first forward to its result.

    Attributes:
        key: what the client calls the request.
        driver: drives them.
        is_over: whether they have ended, by themselves or by a fault.
        reach: what the programs can do, as was said when they were sent.
        cannot_repeat: whether a program has changed what is not changed again, should the request
            be computed again.
        has_read: positions of the request whose values have been offered, or kept to be.
        pieces: how many pieces of the prompt were kept, to be offered with the last.
    """

    def __init__(self, key: str, engine: EngineContext, reach: Reach = ANYTHING) -> None:
        self.key = key
        self.engine = engine
        self.reach = reach
        self.is_over = False
        self.has_read = 0
        self.cannot_repeat = False
        self.pieces = 0
        self._sampled: dict[str, torch.Tensor] = {}
        self.failure: BaseException | None = None
        self.driver: RequestDriver | None = None
        self._block: Machine | None = None
        self._around: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._patches = ExitStack()

    def start(self, payload: bytes) -> None:
        """Load the programs, and run each to its first request."""
        try:
            data, root = self.engine.opened(payload)
            self.driver = RequestDriver(root, self.engine)
            tracer = Tracer(root, "generate", Input(()), {})
            tracer._driver = self.driver
            parts = load_parts(data, root, tracer)
            for part in parts:
                self._add(part, tracer)
            self._around = parts[-1].names
            self._sizes = sizes_of(self._around)
        except Exception as error:
            clean(error)
            self.fail(error)
            return
        self._guarded(self._begin)

    def _add(self, part: Part, tracer: Tracer) -> None:
        driver = self.driver
        if driver is None:
            raise InternalError("a run has no driver yet")

        order = len(driver.machines)

        def make() -> Machine:
            machine = _machine_of(part, tracer)
            # in each step: an edit comes before the block
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

    def _guarded(self, call: Callable[[RequestDriver], Any]) -> Any:
        """Do something with the driver; what goes wrong ends the programs, and nothing else."""
        driver = self.driver
        if self.is_over or driver is None:
            return None
        outer = set_current(None)
        self.engine.serving = driver
        try:
            with self.engine.limit:
                result = call(driver)
            if driver.is_stopped and driver.may_stop():
                self._close()
            return result
        except RunAborted:
            self._close()
        except (Exception, OutOfTime) as error:
            clean(error)
            self.fail(error)
        finally:
            self.engine.serving = None
            set_current(outer)
        return None

    # called by the engine's taps

    def begin_step(self, missed: str) -> None:
        """A forward begins that offers values of this request.

        Args:
            missed: why part of them cannot be offered; empty where all can.
        """
        if self.driver is not None:
            self.driver.missed = missed
            self.driver.forward = self.engine.forward
        self._guarded(Driver.begin_step)

    def edit_again(
        self, tap: RequestTap, visit: tuple[str, int], value: Any, slot: Slot[Run], fresh: set[int]
    ) -> Any:
        """Change what is computed again as it was changed the first time."""
        edits = tap.edits.get(visit)
        if not edits:
            return value
        portion = Portion(tap.place._module, value, slot.again, fresh, visit[0])
        return portion.edit_again(edits, slot.first)

    def keep_piece(self, tap: RequestTap, phase: str, value: Any, span: Span) -> None:
        """Keep a module's values of a piece of the prompt, until the last piece is there."""
        for port in tap.ports:
            if (port in ("input", "inputs")) != (phase == INPUTS):
                continue
            kept = tap.pieces.setdefault(port, [])
            if len(kept) < self.pieces:
                # the first visit of this forward
                kept.append(Portion(tap.place._module, value, span, set(), phase).seen(port))

    def forget_pieces(self) -> None:
        """The prompt has been offered."""
        self.pieces = 0
        for tap in self.driver._taps.values() if self.driver is not None else ():
            if isinstance(tap, RequestTap):
                tap.pieces.clear()

    def offer(
        self, tap: RequestTap, visit: tuple[str, int], value: Any, slot: Slot[Run], fresh: set[int]
    ) -> Any:
        """Offer a value of the engine's; return the one to go on with."""
        phase = visit[0]
        if self.is_over or not (tap.wants(phase, tap.index) or (phase == OUTPUT and tap.skips)):
            return value
        leader = self.engine.leader
        ranks = None if leader is None else leader.visit(tap.place, phase, slot.span)
        weights = self.engine.weights if isinstance(tap.place, OperationPlace) else None
        portion = Portion(tap.place._module, value, slot.span, fresh, phase, ranks, weights)
        self.serve(tap, phase, portion)
        value = self.taken(tap, visit, value, slot, portion)
        if portion.is_edited and (ranks is not None or weights is not None):
            self.cannot_repeat = True
        if portion.is_edited and ranks is not None:
            ranks.keep()
        return value

    def serve(self, tap: RequestTap, phase: str, portion: Portion) -> None:
        """Let the programs see a portion that they wait for."""
        portion.is_read_only = not self.reach.may_write
        portion.earlier = tap.pieces
        if phase == OUTPUT and tap.skips:
            self._guarded(lambda _: _put_skips(tap, portion))
        self._guarded(lambda driver: driver.offer(tap, phase, portion))

    def taken(
        self, tap: RequestTap, visit: tuple[str, int], value: Any, slot: Slot[Run], portion: Portion
    ) -> Any:
        """Take in what the programs have done to their portion of a value; return that value."""
        if self.failure is not None or (self.driver is not None and self.driver.failure):
            # what a program that failed had written by then is not let in
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
        """Tell the programs that wait at a place, and those that ask later, that there is none."""
        tap.missing = error
        self._guarded(lambda driver: driver.fail_waiting(tap, error))

    def end_visit(self, tap: RequestTap, args: Any, kwargs: Any, output: Any, span: Span) -> None:
        """A visit is over: show it to the caches."""
        tap.end_visit()
        if self.driver is not None and self.driver.watchers:

            def watch(driver: RequestDriver) -> None:
                given, named = self._shown(tap, INPUTS, (args, kwargs), span)
                driver.watch(tap, given, named, self._shown(tap, OUTPUT, output, span))

            self._guarded(watch)

    def _shown(self, tap: RequestTap, phase: str, value: Any, span: Span) -> Any:
        """Return what a cache is shown of a value; None of inputs that no cache keeps."""
        driver, leader = self.driver, self.engine.leader
        watchers = [] if driver is None else driver.watchers
        if phase == INPUTS and not any(getattr(one, "_keeps_inputs", True) for one in watchers):
            return (), {}
        ranks = None if leader is None else leader.visit(tap.place, phase, span)
        return Portion(tap.place._module, value, span, set(), phase, ranks).seen(phase)

    def addresses(self, name: str) -> bool:
        """Tell whether a program may ask for the request's logits, or its samples."""
        driver = self.driver
        if self.is_over or driver is None:
            return False
        root: Any = driver.root
        return id(root._places[name]._module) in driver._taps

    def offer_place(self, name: str, value: torch.Tensor, is_again: bool = False) -> torch.Tensor:
        """Offer the request's logits or its sampled token, `[1, ...]`; return what holds.

        Args:
            name: which of the two.
            value: what the engine has.
            is_again: whether they were offered before, and are sampled again after preemption.
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
        portion = _Row(value)
        if not self.is_over and tap.wants(OUTPUT, tap.index):
            self._guarded(lambda driver: driver.offer(tap, OUTPUT, portion))
        self.end_visit(tap, (), {}, value, span)
        if self.failure is not None or driver.failure is not None:
            return value
        if portion.is_edited:
            self._sampled[name] = portion.row.detach().clone()
        return portion.row

    # the end

    def finish(self, result: Any) -> Outcome:
        """Serve the request's result, close what still waits, and return what is left."""
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
                self.driver._close()
        finally:
            self._patches.close()


def _put_skips(tap: RequestTap, portion: Portion) -> None:
    """Let what skips have given take the place of an output."""
    for skip in tap.skips:
        try:
            portion.put("output", skip.value)
        except Exception as error:
            error.__traceback__ = traceback_at(skip.filename, skip.line, skip.function)
            raise
    tap.skips = []


class _Row:
    """A row of the sampler's as an offer; it has one form only."""

    __slots__ = ("_handed", "_version", "row")

    def __init__(self, row: torch.Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.row = self._handed = row.detach().clone()
        self._version = self._handed._version

    @property
    def is_edited(self) -> bool:
        """Whether it is another one, or was edited in place."""
        return self.row is not self._handed or self._handed._version != self._version

    def seen(self, port: str) -> Any:
        return self.row

    def put(self, port: str, new: Any) -> None:
        difference = misfit(self.row, new)
        if difference is not None:
            raise WriteError(f"the value written is {difference}; make it fit")
        self.row = new


def _machine_of(part: Part, tracer: Tracer) -> Machine:
    names = _Names(part.names)
    machine = tracer._machine_of(part.program, part.user_globals, names)
    if machine.is_plain and any(word in part.program.source for word in (".logits", ".samples")):
        # named without a port, they are asked for by an attribute that is not lowered
        unplain(part.program)
        machine = tracer._machine_of(part.program, part.user_globals, names)
    machine.leaves_all = part.leaves_all
    return machine


class _Names(dict[str, Any]):
    """The names around a block, as they were when it was sent."""

    def now(self, name: str) -> Any:
        if name not in self:
            raise NameError(f"name {name!r} was not bound when the block was sent", name=name)
        return self[name]


def _expect(driver: Driver, machine: Machine) -> None:
    """Tell the driver which places a program can ask for, as far as its text tells."""
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
