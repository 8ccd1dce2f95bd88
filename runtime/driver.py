"""The driver: the single-threaded owner of a run's machines.

A tap offers a value; the driver answers the requests that wait for it, machine by machine in the
order of their definition, and resumes each until it waits for something else. A machine that
asks again for the location being offered is served in the same offer. Nothing waits for ever: a
request that can no longer be met is an error, raised in the machine at once, at the user's line.

The driver holds no value longer than the request that asked for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import Request

from . import complaints
from .barriers import Barrier
from .errors import (
    InternalError,
    InvokeError,
    OutOfOrderError,
    RunAborted,
    StaleEditError,
    WriteError,
)
from .fast_path import has_fast_path, leave_fast_path, return_to_fast_path
from .gradients import Backward, note_view
from .instruments import Log
from .locations import Place, ancestors, name_of
from .machine import Machine, set_current
from .operations import OperationPlace, OperationTap
from .replays import INPUTS, OUTPUT
from .rows import Rows, leaves_of, narrow, widen
from .steps import PlainSteps, Steps, StepSpec
from .taps import Tap
from .tracebacks import clean, traceback_at
from .values import misfit, port_value, with_element, with_port_value


class _Parked:
    """The type of the one answer that means: the machine waits."""


PARKED = _Parked()


@dataclass(slots=True)
class Offer:
    """A value that is being offered, and may be replaced while it is.

    Attributes:
        tap: where.
        phase: `"inputs"` before a call, `"output"` after it.
        index: which occurrence.
        value: `(args, kwargs)` or the output.
        is_whole: whether every invoke sees all of it, as in a call that a block makes itself.
        handed: containers that were made for some rows: rows, port, container and its leaves.
    """

    tap: Tap
    phase: str
    index: int | None
    value: Any
    is_whole: bool
    handed: list[tuple[Rows, str, Any, list[Any]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Skip:
    """A value that takes the place of a module's output, and where that was asked for."""

    value: Any
    rows: Rows | None
    filename: str
    line: int
    function: str


class Watcher(Protocol):
    """What is shown every visit to a tapped module."""

    def record(self, place: Place, inputs: Any, output: Any, factor: int) -> None:
        """See the arguments and the output of a visit, after the edits of all blocks."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A write that changed the form of a value, in case the model fails on it."""

    filename: str
    line: int
    function: str
    location: str
    difference: str


class Driver:
    """One run of one model.

    Attributes:
        root: place of the root module.
        stepping: in a generation, the place whose calls are steps: the root, or the model that
            stands in it as in a wrapper; None in other runs.
        is_stepped: True in a generation.
        step: the step that runs, -1 before the first.
        machines: the machines in the order of their definition.
        is_session: whether this is no run, but a block of several.
        is_partial: whether this is the first step of a generation only, to see whether it fits.
        factor: rows of the batch per row of the input, other than 1 under beam search.
        failure: what a machine or the model has raised.
        log: what has been served, if somebody wants to know.
        watchers: what is shown every visit to a tapped module, once it is over.
        has_grad: whether the forward of the root that runs builds a graph.
        each_step: makes the machines that start anew with each step after the first.
    """

    def __init__(self, root: Place, stepping: Place | None = None) -> None:
        self.root = root
        self.stepping = stepping
        self.is_stepped = stepping is not None
        self.step = -1
        self.is_session = False
        self.is_partial = False
        self.factor = 1
        self.machines: list[Machine] = []
        self.failure: BaseException | None = None
        self.log: Log | None = None
        self.watchers: list[Watcher] = []
        self.each_step: list[Callable[[], Machine]] = []
        self.thread = get_ident()
        self.visit_waiters: list[tuple[Machine, Steps]] = []
        self._step_waiters: list[tuple[Machine, Steps]] = []
        self._most_visits = 0
        self._taps: dict[int, Tap] = {}
        self._offer: Offer | None = None
        self._ready: list[tuple[Machine, Any]] = []
        self._shared: dict[str, dict[int, Any]] = {}
        self._suspects: list[Suspect] = []
        self._replaced: list[tuple[weakref.ref[torch.Tensor], int, str, int]] = []
        self._is_stopped = False
        self._has_ended = False
        self._result: tuple[Any] | None = None
        self._own_calls = 0
        self._outer: Machine | None = None
        self._is_off_fast_path = False
        self.is_in_backward = False
        self.has_grad = False
        self.is_tapping_ahead = False
        self._expected: list[tuple[Place, str]] = []
        self._expects_anything = False

    # the run

    def run(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run the model with all machines; what went wrong stands in `failure` afterwards.

        Returns:
            What the model returned, None if it was stopped.
        """
        result = None
        # a run inside a block of another model: that block is not what is being advanced here
        outer = self._outer = set_current(None)
        try:
            self._tap_ahead()
            for machine in self.machines:
                if not machine.is_done and machine.pending is None:
                    self._drive(machine, None)
            if not self._may_stop():
                result = function(*args, **kwargs)
                if self.failure is None:
                    self._finish(result)
        except RunAborted:
            pass
        except BaseException as error:
            self.failure = complaints.model_failed(error, self._suspects)
        finally:
            self._close()
            self._outer = None
            set_current(outer)
        return result

    def build(self, machine: Machine) -> None:
        """Run the machine that only collects invokes; they are added to `machines`."""
        outer = set_current(None)
        try:
            self._drive(machine, None)
            if not machine.is_done:
                raise InternalError("a block that only collects invokes waits for something")
        except RunAborted:
            pass
        finally:
            set_current(outer)

    def tap_for(self, place: Place) -> Tap:
        """Return the tap at a place; put one there, and at all places above it, if need be."""
        tap = self._taps.get(_key(place))
        if tap is None:
            for above in ancestors(place):
                above._refresh()
                if _key(above) in self._taps:
                    break
                tap = self._taps[_key(above)] = self._new_tap(above)
                if above._module is not None and not self._has_ended:
                    tap.install()
                    if not self._is_off_fast_path and has_fast_path(above._module):
                        self._is_off_fast_path = True
                        leave_fast_path()
            tap = self._taps[_key(place)]
        return tap

    def _new_tap(self, place: Place) -> Tap:
        if isinstance(place, OperationPlace):
            return OperationTap(place, self)
        stepping = self.stepping
        return Tap(
            place,
            self,
            is_stepping=stepping is not None and place._module is stepping._module,
        )

    def expect(self, places: Iterable[tuple[Place, str]]) -> None:
        """Say which places and ports a machine can ask for."""
        self._expected.extend(places)

    def expect_anything(self) -> None:
        """Say that a machine can ask for whatever module it likes."""
        self._expects_anything = True

    def places(self) -> Iterator[Place]:
        """Iterate over the modules of the model."""
        todo = [self.root]
        while todo:
            place = todo.pop()
            yield place
            # in order: a module that stands at several places goes by the first
            todo.extend(reversed([*place._places_below()]))

    def is_offering_inputs(self, tap: Tap) -> bool:
        """Tell whether the arguments of a place are being offered, so that its call is to come."""
        offer = self._offer
        return offer is not None and offer.tap is tap and offer.phase == INPUTS

    def fail_waiting(self, tap: Tap, error: Exception) -> None:
        """Raise an error in all machines that wait at a tap."""
        while tap.waiting:
            self._drive(tap.waiting.pop(0), error=error)

    def watch_for(self, places: Sequence[Place], machine: Machine) -> None:
        """See to it that watchers are shown what a machine has asked for, and all below the root.

        Args:
            places: what is watched; the root alone stands for all modules.
            machine: the machine that asks.
        """
        everything = any(place is self.root for place in places) and len(places) == 1
        if machine.is_builder:
            # the run has not begun: taps stand for the length of the run only
            if everything:
                self.expect_anything()
            self.expect((place, OUTPUT) for place in places)
        elif everything:
            self._tap_all()
        else:
            for place in places:
                self.tap_for(place)

    def _tap_ahead(self) -> None:
        """Put taps where machines can ask, so that what passes before they do is noticed."""
        if self.stepping is not None:
            self.tap_for(self.stepping)
        self.is_tapping_ahead = True
        for place, port in self._expected:
            if self._is_of_model(place):
                self.tap_for(place).expect(port)
        if self._expects_anything:
            self._tap_all()
        self.is_tapping_ahead = False

    def _tap_all(self) -> None:
        for place in self.places():
            self.tap_for(place)

    def _finish(self, result: Any) -> None:
        """Serve what comes after the model's last forward, and complain of what never came."""
        self._has_ended = True
        if self.is_partial:
            # the machines that still wait do so for what only the real run has
            return
        for machine, steps in self._take_waiters():
            if not steps.is_open:
                self._warn_of_missing(machine, steps)
            self._drive(machine, False)
        self._result = (result,)
        for machine in self.machines:
            request = machine.pending
            is_read = request is not None and request[0] == requests.READ
            if request is not None and is_read and request[1]._module is None:
                self._drive(machine, self._seen_result(machine))
        for machine in self.machines:
            if not machine.is_done and machine.pending is not None:
                error = self._never_came(machine, machine.pending)
                self._drive(machine, error=error)

    def _never_came(self, machine: Machine, request: Request) -> BaseException:
        """Return what to raise where a machine waits for what can no longer come.

        In a run with one forward of the root, round k of a loop is the k-th visit to each
        location. Where one has fewer visits than the others, the loop ends there.
        """
        loop = machine.loops[-1] if machine.loops else None
        if loop is None or not loop.is_lowered or self.is_stepped or machine.step == 0:
            return complaints.never_came(self, machine, request)
        place = _target(request) if _phase_of(request) is not None else None
        if not isinstance(place, Place) or not 0 < self.tap_for(place).begun <= machine.step:
            return complaints.never_came(self, machine, request)
        if not loop.is_open:
            complaints.warn_of_missing_visits(machine, request, self.tap_for(place).begun)
        loop.is_over = True
        return loop.over()

    def _take_waiters(self) -> list[tuple[Machine, Steps]]:
        waiters = sorted(
            self._step_waiters + self.visit_waiters, key=lambda waiter: waiter[0].order
        )
        self._step_waiters = []
        self.visit_waiters = []
        return waiters

    def _warn_of_missing(self, machine: Machine, steps: Steps) -> None:
        taken = self.step + 1 if self.is_stepped else None
        complaints.warn_of_missing_steps(machine, steps, taken)

    def _close(self) -> None:
        self._has_ended = True
        self._result = None
        if self._is_off_fast_path:
            self._is_off_fast_path = False
            return_to_fast_path()
        for tap in self._taps.values():
            tap.remove()
        self._offer = None
        for machine in self.machines:
            if machine.is_done:
                continue
            if machine.pending is not None:
                left = machine.program.names_left(machine.running)
                machine.names = machine.leaving(left)
            try:
                machine.close()
            except BaseException as error:
                clean(error)
                if self.failure is None:
                    self.failure = error
        self._shared.clear()
        # taps name their driver: without them it goes as soon as nobody needs it
        self._taps.clear()

    def _may_stop(self) -> bool:
        return self._is_stopped and all(machine.is_done for machine in self.machines)

    # taps call these

    def begin_step(self) -> None:
        """A call of what steps begins: the next step."""
        self.step += 1
        for tap in list(self._taps.values()):
            for machine in [m for m in tap.waiting if m.step < self.step]:
                if tap.place._module is not None and machine.pending is not None:
                    tap.waiting.remove(machine)
                    error = complaints.not_in_step(self, machine, machine.pending)
                    self._drive(machine, error=error)
        if self.step > 0:
            for make in self.each_step:
                machine = make()
                machine.step = self.step
                self.machines.append(machine)
                self._drive(machine, None)
        self._begin_rounds(self._step_waiters, self.step)

    def watch(self, tap: Tap, args: Any, kwargs: Any, output: Any) -> None:
        """Show the watchers a visit that is over."""
        for watcher in self.watchers:
            watcher.record(tap.place, (args, kwargs), output, self.factor)

    def begin_visit(self, index: int) -> None:
        """A module is called for the `index`-th time, in a run with one forward of the root."""
        self._most_visits = max(self._most_visits, index + 1)
        self._begin_rounds(self.visit_waiters, index)

    def _begin_rounds(self, waiters: list[tuple[Machine, Steps]], index: int) -> None:
        due = [waiter for waiter in waiters if waiter[1].next_step == index]
        for machine, steps in sorted(due, key=lambda waiter: waiter[0].order):
            waiters.remove((machine, steps))
            steps.begin()
            self._drive(machine, True)

    def offer_inputs(self, tap: Tap, given: tuple[Any, Any]) -> Any:
        """Offer the arguments of a call, `(args, kwargs)`; return those to call with."""
        offer = Offer(tap, INPUTS, tap.index, given, self._own_calls > 0)
        self._serve(offer)
        return offer.value

    def offer_output(self, tap: Tap, output: Any) -> Any:
        """Offer the output of a call; return the one for the caller."""
        offer = Offer(tap, OUTPUT, tap.index, output, self._own_calls > 0)
        self._serve(offer)
        return offer.value

    def skipped_output(
        self, tap: Tap, call: Callable[..., Any], module: Any, args: Any, kwargs: Any
    ) -> Any:
        """Return the output of a module that some or all machines have asked to skip."""
        skips, tap.skips = tap.skips, []
        tap.skipped_by = skips[-1].line
        # as with writes, the last word on a row holds
        whole = [number for number, skip in enumerate(skips) if skip.rows is None]
        if whole:
            output, skips = skips[whole[-1]].value, skips[whole[-1] + 1 :]
        else:
            by_rows = {skip.rows.start: skip for skip in skips if skip.rows is not None}
            last = [by_rows[start] for start in sorted(by_rows)]
            rows = [skip.rows for skip in last if skip.rows is not None]
            if sum(one.count for one in rows) == rows[0].total:
                return pytree.tree_map(_joined, *[skip.value for skip in last])
            # the others need the module, and its caches need all rows: run it, then replace
            tap.skipped_by = None
            output = call(module, *args, **kwargs)
        for skip in skips:
            if skip.rows is not None:
                try:
                    output = widen(output, skip.value, skip.rows, self.factor)
                except WriteError as error:
                    error.__traceback__ = traceback_at(skip.filename, skip.line, skip.function)
                    raise
        return output

    # serving

    def _serve(self, offer: Offer) -> None:
        outer, self._offer = self._offer, offer
        try:
            waiting = offer.tap.waiting
            while waiting:
                machine = self._first_waiting(offer)
                if machine is None:
                    break
                waiting.remove(machine)
                request = machine.pending
                if request is not None:
                    self._answer(machine, request)
                if offer.handed:
                    self._take_edits(offer)
                    offer.handed.clear()
        finally:
            self._offer = outer

    def _take_edits(self, offer: Offer) -> None:
        """Put into the batch what blocks have set in containers that were made for their rows."""
        for number, (rows, port, container, before) in enumerate(offer.handed):
            leaves = leaves_of(container)
            same = len(leaves) == len(before)
            if same and all(a is b for a, b in zip(leaves, before, strict=True)):
                continue
            whole = port_value(offer.value, port)
            new = widen(whole, container, rows, self.factor)
            offer.value = with_port_value(offer.value, port, new)
            offer.handed[number] = rows, port, container, leaves

    def _first_waiting(self, offer: Offer) -> Machine | None:
        first = None
        for machine in offer.tap.waiting:
            if (first is None or machine.order < first.order) and self._is_for(machine, offer):
                first = machine
        return first

    def _is_for(self, machine: Machine, offer: Offer) -> bool:
        request = machine.pending
        if request is None or _phase_of(request) != offer.phase:
            return False
        return offer.tap.place._module is None or machine.step == offer.index

    def _answer(self, machine: Machine, request: Request) -> None:
        try:
            answer = self._handle(machine, request)
        except RunAborted:
            raise
        except BaseException as error:
            clean(error)
            self._drive(machine, error=error)
            return
        if answer is not PARKED:
            self._drive(machine, answer)

    def _drive(
        self, machine: Machine, answer: Any = None, *, error: BaseException | None = None
    ) -> None:
        """Resume a machine, and handle what it asks for, until it waits or is done."""
        while True:
            try:
                request = machine.advance(answer) if error is None else machine.throw(error)
                answer = error = None
                while request[0] in _ON_TARGET and not isinstance(_target(request), Place):
                    request = machine.call(*_on_foreign(request))
                while request[0] == requests.OPEN:
                    # carried, so that its blocks can wait for values of this run, too
                    request = machine.call(_open, machine, request)
            except BaseException as raised:
                self._fail(machine, raised)
            try:
                if self._replaced:
                    self._check_replaced(machine)
                answer = self._handle(machine, request)
            except RunAborted:
                raise
            except BaseException as raised:
                clean(raised)
                error = raised
                continue
            if answer is PARKED:
                if not self._ready:
                    return
                # machines that a barrier or a name has set free go on in order of definition
                self._ready.sort(key=lambda ready: ready[0].order)
                machine, answer = self._ready.pop(0)

    def _fail(self, machine: Machine, raised: BaseException) -> None:
        """A machine has raised: keep what it had saved, and leave the run."""
        machine.is_done = True
        cause = raised.__cause__
        if isinstance(raised, RuntimeError) and isinstance(cause, StopIteration):
            # Python turns a StopIteration that leaves a generator into this RuntimeError
            raised = cause
        traceback = raised.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code is machine.program.code:
                left = machine.program.names_in(traceback.tb_frame.f_locals)
                machine.names = left if machine.is_builder else machine.leaving(left)
            traceback = traceback.tb_next
        clean(raised)
        self.failure = raised
        raise RunAborted

    def _check_replaced(self, machine: Machine) -> None:
        """Look whether a machine has edited what another one had replaced before."""
        known, self._replaced = self._replaced, []
        for entry in known:
            reference, version, location, order = entry
            tensor = reference()
            if tensor is None:
                continue
            if tensor._version == version:
                self._replaced.append(entry)
            elif order != machine.order:
                raise StaleEditError(
                    f"a tensor of {location} was edited in place after another invoke had "
                    "replaced it, so the edit would have no effect; read the location again "
                    "after the replacement, or edit it before"
                )

    # requests

    def _handle(self, machine: Machine, request: Request) -> Any:
        """Answer a request, or park the machine with it."""
        return _HANDLERS[request[0]](self, machine, request)

    def _read(self, machine: Machine, request: Request) -> Any:
        _, place, port = request
        if place._module is None and self._result is not None:
            return self._seen_result(machine)
        offer = self._offered(machine, request)
        if offer is None:
            return self._park(machine, request, place)
        seen = self._seen(machine, offer, port)
        if self.log is not None:
            self.log.add(name_of(place, port), machine.step, request[0], machine.line, seen)
        if machine.program.first_items and port == OUTPUT and isinstance(seen, torch.Tensor):
            complaints.warn_of_first_row(machine, place)
        return seen

    def _write(self, machine: Machine, request: Request) -> Any:
        _, value, place, port = request
        if place._module is None:
            location = name_of(place, port)
            raise WriteError(f"{location} is what the run returns; it can be read, not written")
        offer = self._offered(machine, request)
        if offer is None:
            return self._park(machine, request, place)
        seen = self._seen(machine, offer, port)
        self._put(machine, offer, place, port, seen, value)
        return None

    def _element(self, machine: Machine, request: Request) -> Any:
        _, value, container, place, port, *path = request
        new = machine.in_its_state(with_element, container, path, value)
        if place._module is None:
            return None
        offer = self._offered(machine, request)
        if offer is None:
            # the container was read from an offer that is over, as when its index waited
            raise complaints.element_passed(request)
        self._put(machine, offer, place, port, container, new)
        return None

    def _put(
        self, machine: Machine, offer: Offer, place: Place, port: str, seen: Any, new: Any
    ) -> None:
        """Put a value in the place of the one that a machine sees."""
        location = name_of(place, port)
        if self.log is not None:
            self.log.add(location, machine.step, requests.WRITE, machine.line, new)
        if machine.rows is None or offer.is_whole:
            difference = misfit(seen, new) if new is not seen else None
            if difference is not None:
                self._suspect(machine, location, difference)
        elif new is not seen or not isinstance(new, torch.Tensor):
            whole = port_value(offer.value, port)
            new = widen(whole, new, machine.rows, self.factor)
            self._remember_replaced(machine, whole, new, location)
        else:
            return
        offer.value = with_port_value(offer.value, port, new)
        # containers of what stood here before are nobody's from now on
        offer.handed.clear()

    def _suspect(self, machine: Machine, location: str, difference: str) -> None:
        program = machine.program
        self._suspects.append(
            Suspect(program.filename, machine.line, program.name, location, difference)
        )

    def _remember_replaced(self, machine: Machine, whole: Any, new: Any, location: str) -> None:
        pairs = zip(pytree.tree_leaves(whole), pytree.tree_leaves(new), strict=True)
        for old, leaf in pairs:
            if old is not leaf and isinstance(old, torch.Tensor) and not old.is_inference():
                entry = (weakref.ref(old), old._version, location, machine.order)
                self._replaced.append(entry)

    def _seen(self, machine: Machine, offer: Offer, port: str) -> Any:
        """Return what a machine sees of an offer."""
        value = port_value(offer.value, port)
        if machine.rows is None or offer.is_whole:
            return value
        seen = narrow(value, machine.rows, self.factor)
        if isinstance(seen, torch.Tensor) and seen is not value:
            span = machine.rows.span_in(value, self.factor)
            if span is not None:
                note_view(seen, value, *span)
        if not isinstance(seen, torch.Tensor):
            leaves = leaves_of(seen)
            offer.handed.append((machine.rows, port, seen, leaves))
        return seen

    def _seen_result(self, machine: Machine) -> Any:
        """Return what a machine sees of the run's result, once there is one."""
        if self._result is None:
            raise AssertionError("the run has no result yet")
        (result,) = self._result
        return result if machine.rows is None else narrow(result, machine.rows, self.factor)

    def _offered(self, machine: Machine, request: Request) -> Offer | None:
        """Return the current offer if it is the one a request is for."""
        offer = self._offer
        if offer is None or offer.phase != _phase_of(request):
            return None
        if offer.tap is not self._taps.get(_key(_target(request))):
            return None
        if offer.tap.place._module is not None and offer.index != machine.step:
            return None
        if offer.handed:
            # what was set until now comes before what is asked for now
            self._take_edits(offer)
        return offer

    def _park(self, machine: Machine, request: Request, place: Place) -> Any:
        """Let a machine wait at a place, unless what it waits for cannot come any more."""
        if machine.is_builder:
            raise complaints.value_in_builder(
                request,
                has_invokes=machine.program.has_invokes,
                is_session=self.is_session,
            )
        if not self._is_of_model(place):
            if self._outer is not None:
                # this run stands in a block of another model's run, which may have the value
                answer: Any = self._outer.request(request)
                return answer
            raise complaints.other_model(request)
        tap = self.tap_for(place)
        error = tap.missing or self._too_late(machine, request, tap) or tap.uncovered(machine)
        if error is not None:
            raise error
        machine.pending = request
        tap.waiting.append(machine)
        return PARKED

    def _is_of_model(self, place: Place) -> bool:
        """Tell whether a place belongs to the model that runs, by whichever wrapper."""
        return place._root is None or place._root._module is self.root._module

    def _too_late(self, machine: Machine, request: Request, tap: Tap) -> BaseException | None:
        if tap.place._module is None:
            return None
        step = machine.step
        before_call = _phase_of(request) == INPUTS
        if self.is_stepped:
            visit = tap.begun_step if before_call else tap.done_step
            if visit >= step or self._has_ended:
                return complaints.passed(self, machine, request, tap)
            if self.step > step:
                return complaints.not_in_step(self, machine, request)
        elif (tap.begun if before_call else tap.done) > step:
            return complaints.passed(self, machine, request, tap)
        elif self._has_ended:
            return self._never_came(machine, request)
        place: Place | None = _target(request)._parent
        while place is not None:
            above = self._taps.get(_key(place))
            if above is not None and self._is_over(above, step):
                return complaints.parent_passed(machine, request, place)
            place = place._parent
        return None

    def _is_over(self, tap: Tap, step: int) -> bool:
        """Tell whether a module has returned for good, so that nothing below it comes any more."""
        if (tap.done_step if self.is_stepped else tap.done - 1) < step:
            return False
        if tap.begun != tap.done or tap.begun > step + 1:
            # it runs now, as one that calls itself, or was called more often than once
            return False
        module = tap.place._module
        places = self.root._module.named_modules(remove_duplicate=False)
        return sum(one is module for _, one in places) < 2

    def _skip(self, machine: Machine, request: Request) -> Any:
        _, place, value = request
        offer = self._offered(machine, request)
        if offer is None:
            return self._park(machine, request, place)
        program = machine.program
        offer.tap.skips.append(
            Skip(value, machine.rows, program.filename, machine.line, program.name)
        )
        return None

    def _steps(self, machine: Machine, request: Request) -> Any:
        spec = request[1]
        return Steps(spec, machine) if isinstance(spec, StepSpec) else PlainSteps(spec)

    def _step(self, machine: Machine, request: Request) -> Any:
        steps: Steps = request[1]
        if machine.is_builder:
            raise complaints.steps_in_builder()
        number = steps.look_ahead()
        if number is None or steps.is_over:
            return False
        if self._has_ended:
            if not steps.is_open:
                self._warn_of_missing(machine, steps)
            return False
        reached = self.step if self.is_stepped else max(self._most_visits - 1, 0)
        if self.is_stepped and reached > number:
            raise OutOfOrderError(
                f"step {number} is over, the generation is at step {reached}; enter the loop "
                "before its first step, or begin it later"
            )
        if reached == number or (not self.is_stepped and reached >= number):
            steps.begin()
            return True
        machine.pending = request
        (self._step_waiters if self.is_stepped else self.visit_waiters).append((machine, steps))
        if self.stepping is not None:
            self.tap_for(self.stepping)
        return PARKED

    def _block(self, machine: Machine, request: Request) -> Any:
        _, target, number = request
        if not machine.is_builder:
            raise complaints.nested_invoke()
        add = getattr(target, "_add_to_run", None)
        if add is None:
            raise InvokeError(
                f"{target!r} opens no invoke; write 'with tracer.invoke(...):' with the tracer of "
                "this trace"
            )
        program = machine.program.children[number]
        names = machine.program.names_left(machine.running)
        frame = machine.running.gi_frame
        add(program, machine.user_globals, {**frame.f_locals} if frame else names)
        return {}

    def _backward(self, machine: Machine, request: Request) -> Any:
        _, number, loss, (args, kwargs) = request
        if len(args) < 2 and "retain_graph" not in kwargs and self._has_other_backward(machine):
            # the graph of a batch is one, and this block cannot know that others go through it
            kwargs = {**kwargs, "retain_graph": True}
        backward = Backward(loss, args, kwargs)
        inner = machine.inner(number)
        # what a checkpoint computes again is no visit of the forward's
        self.is_in_backward, outer = True, self.is_in_backward
        try:
            backward.run(inner)
        finally:
            self.is_in_backward = outer
        if backward.failure is not None:
            raise backward.failure
        return inner.names

    def _has_other_backward(self, machine: Machine) -> bool:
        """Tell whether another block of this run may go back through the graph later."""
        return any(
            other is not machine
            and not other.is_done
            and any(program.kind == "backward" for program in other.program.all_programs())
            for other in self.machines
        )

    def _bind(self, machine: Machine, request: Request) -> Any:
        _, name, value = request
        self._shared.setdefault(name, {})[machine.order] = value
        for other in self.machines:
            waits = other.pending
            is_waiting = waits is not None and waits[:2] == (requests.NAME, name)
            if is_waiting and machine.order < other.order:
                other.pending = None
                self._ready.append((other, value))
        if not self._ready:
            return None
        self._ready.append((machine, None))
        return PARKED

    def _name(self, machine: Machine, request: Request) -> Any:
        name = request[1]
        told = self._shared.get(name, {})
        earlier = [order for order in told if order < machine.order]
        if earlier:
            return told[max(earlier)]
        if name in machine.program.waits_for and any(
            other.order < machine.order and not other.is_done and name in other.program.bound
            for other in self.machines
        ):
            machine.pending = request
            return PARKED
        if name in machine.program.waits_for and not machine.has_outer(name):
            raise complaints.never_bound(name)
        return machine.outer_value(name)

    def _meet(self, machine: Machine, request: Request) -> Any:
        barrier: Barrier = request[1]
        if machine.is_builder:
            raise complaints.barrier_in_builder()
        if sum(not one.is_done for one in self.machines) < barrier.participants:
            raise complaints.barrier_without_enough(self, barrier, here=1)
        barrier.arrived.append(machine)
        machine.pending = request
        if len(barrier.arrived) >= barrier.participants:
            for other in barrier.arrived:
                other.pending = None
                self._ready.append((other, None))
            barrier.arrived = []
        return PARKED

    def _stop(self, machine: Machine, request: Request) -> Any:
        if machine.is_builder:
            raise complaints.stop_in_builder()
        self._is_stopped = True
        return self._end(machine, request)

    def _end(self, machine: Machine, request: Request) -> Any:
        if len(request) > 1:
            machine.result = request[1]
        machine.finish()
        self._check_barriers()
        if self._may_stop() and not self._has_ended and not self._ready:
            raise RunAborted
        return PARKED

    def _check_barriers(self) -> None:
        """Tell those who wait at a barrier that too few are left to come."""
        for other in self.machines:
            waits = other.pending
            if waits is None or waits[0] != requests.MEET:
                continue
            barrier: Barrier = waits[1]
            if sum(not one.is_done for one in self.machines) < barrier.participants:
                error = complaints.barrier_without_enough(self, barrier, here=0)
                barrier.arrived.remove(other)
                self._drive(other, error=error)

    def _call(self, machine: Machine, request: Request) -> Any:
        _, place, args, kwargs = request
        self.tap_for(place)
        self._own_calls += 1
        try:
            return place._module(*args, **kwargs)
        finally:
            self._own_calls -= 1


def _key(place: Place) -> int:
    """Identify what a tap is for: a module, which may sit at several places, or a place."""
    return id(place if place._module is None else place._module)


def _open(machine: Machine, request: Request) -> Any:
    """Run a trace inside of a block: in a session, or of another model."""
    _, number, target = request
    frame = machine.running.gi_frame
    names = {} if frame is None else {**frame.f_locals}
    program = machine.program.children[number]
    target._outer_now = machine.outer_now
    left, failure = target._run_inside(program, machine.user_globals, names, machine.saved)
    if failure is not None:
        raise failure
    return left


def _joined(*parts: Any) -> Any:
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) and parts[0].ndim else parts[0]


_Handler = Callable[[Driver, Machine, Request], Any]
_HANDLERS: Mapping[str, _Handler] = {
    requests.READ: Driver._read,
    requests.WRITE: Driver._write,
    requests.ELEMENT: Driver._element,
    requests.SKIP: Driver._skip,
    requests.STEPS: Driver._steps,
    requests.STEP: Driver._step,
    requests.BLOCK: Driver._block,
    requests.BACKWARD: Driver._backward,
    requests.BIND: Driver._bind,
    requests.NAME: Driver._name,
    requests.MEET: Driver._meet,
    requests.STOP: Driver._stop,
    requests.END: Driver._end,
    requests.CALL: Driver._call,
}


def _phase_of(request: Request) -> str | None:
    """Tell when a request is served: before the call of its module, or after."""
    verb = request[0]
    if verb == requests.READ:
        return INPUTS if request[2] in ("input", "inputs") else OUTPUT
    if verb == requests.ELEMENT:
        return INPUTS if request[4] in ("input", "inputs") else OUTPUT
    if verb == requests.WRITE:
        return INPUTS if request[3] in ("input", "inputs") else OUTPUT
    return INPUTS if verb == requests.SKIP else None


_ON_TARGET = frozenset({requests.READ, requests.WRITE, requests.ELEMENT, requests.STEP})


def _target(request: Request) -> Any:
    verb = request[0]
    if verb == requests.WRITE:
        return request[2]
    if verb == requests.ELEMENT:
        return request[3]
    if verb == requests.STEP:
        # only a loop over something that is no steps runs the user's code
        return request[1] if isinstance(request[1], PlainSteps) else _NO_CODE
    return request[1]


_NO_CODE = Place()


def _on_foreign(request: Request) -> tuple[Any, ...]:
    """Return the plain Python operation that a request on any other object stands for."""
    verb = request[0]
    if verb == requests.READ:
        return getattr, request[1], request[2]
    if verb == requests.STEP:
        return _next_item, request[1]
    if verb == requests.ELEMENT:
        _, value, container, _, _, *path = request
        return _set_item, container, path, value
    _, value, target, port = request
    return setattr, target, port, value


def _next_item(steps: PlainSteps) -> bool:
    for value in steps.iterator:
        steps.value = value
        return True
    return False


def _set_item(container: Any, path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value
