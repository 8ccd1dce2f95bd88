"""The driver: the single-threaded owner of a run's machines.

A tap offers a value; the driver answers the requests that wait for it, machine by machine in the
order of their definition, and resumes each until it waits for something else. A machine that
asks again for the location being offered is served in the same offer. Nothing waits for ever: a
request that can no longer be met is an error, raised in the machine at once, at the user's line.

The driver holds no value longer than the request that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any

import torch

from nnsight_dsl.runtime.errors import InternalError, RunAborted
from nnsight_dsl.runtime.locations import Place, key_of, name_of
from nnsight_dsl.runtime.machines.ambient import (
    StateOutside,
    restore_after_interrupt,
    state_outside,
)
from nnsight_dsl.runtime.machines.machine import Machine, advanced, set_current
from nnsight_dsl.runtime.machines.steps import Steps
from nnsight_dsl.runtime.record import Record, is_interrupt
from nnsight_dsl.runtime.tapping.kept_taps import Fixtures
from nnsight_dsl.runtime.tapping.offering import Watcher
from nnsight_dsl.runtime.tapping.taps import Tap, is_usual_call
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.runtime.values.offer import Offer
from nnsight_dsl.runtime.values.offers import Writes, seen_by, take_edits
from nnsight_dsl.runtime.values.rows import Cut, Rows, narrow
from nnsight_dsl.runtime.values.views import OfferCut
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import INPUTS, Request, phase_of, target_of

from . import lateness, messages
from .loop import PARKED
from .results import StreamPlace, names_stream
from .tapping_run import TappingRun


class Driver(TappingRun):
    """One run of one model, with its taps.

    Attributes:
        is_usual: True if torch calls modules in its own way, which jit's tracer does not.
        is_read_only: True while the value on offer must not be replaced by another object.
        has_grad: whether the forward of the root that runs builds a graph.
        watchers: objects that are shown every visit to a tapped module, once it is over.
        each_step: makes the machines that start anew with each step after the first.
        record: the changes that the run has made outside of itself, other than taps; that of its
            turn, if it has one.
    """

    is_read_only = False
    has_grad = False
    is_usual = False
    _outer: Machine | None = None
    _results: dict[Rows, Any]
    each_step: list[Callable[[], Machine]]
    _is_mounted = False

    mount: Callable[[object], None] = staticmethod(lambda user: None)
    """Adds the methods that code which was not lowered needs, as `save` of tensors."""

    unmount: Callable[[object], None] = staticmethod(lambda user: None)
    """Removes them, if they have been added."""

    def __init__(self, root: Place, stepping: Place | None = None) -> None:
        # Each access asks for these: found in the instance they cost 5 ns, on the class 35.
        self._offer: Offer | None = None
        self.step = -1
        self.ready: Sequence[tuple[Machine, Any]] = ()
        self.has_ended = False
        self.own_calls = 0
        self.is_direct = type(self).is_direct
        self.is_common = True
        self.factor = 1
        self.root = root
        self.stepping = stepping
        self.is_stepped = stepping is not None
        if stepping is not None:
            self.is_common = False
            self.each_step = []
        self.machines: list[Machine] = []
        self.watchers: list[Watcher] = []
        self.thread = get_ident()
        self.writes = Writes()
        self.record = Record()
        self._taps: dict[int, Tap] = {}
        self._expected: list[tuple[Place, str]] = []
        self._fixtures: list[Fixtures] = []

    # the run

    def run(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run the model with all machines; an error is in `failure` afterwards.

        Returns:
            The model's return value, None if it was stopped.
        """
        result = None
        record = self.record
        depth = len(record)
        # a run inside a block of another model: that block's machine is not the current one here
        outer = self._outer = advanced()
        record.append((set_current, outer))
        record.append((self._restore_state, state_outside()))
        record.append((self._close,))
        try:
            set_current(None)
            if self.log is not None:
                self.is_direct = False
            self.has_grad = torch.is_grad_enabled()
            self.is_usual = is_usual_call()
            is_expected = self._fixtures or self._expected or self._expects_anything
            if is_expected or self.is_tapped_ahead or self.stepping is not None:
                self._tap_ahead()
            for machine in self.machines:
                machine.is_usual = self.is_direct and not machine.program.first_items
                if not machine.is_done and machine.pending is None:
                    self.drive(machine)
            if not (self.is_stopped and self.may_stop()):
                self.is_called = True
                result = function(*args, **kwargs)
                # a model may have caught the error of a machine: then nothing more is served
                if self.failure is None and any(not one.is_done for one in self.machines):
                    result = self._finish(result)
        except RunAborted:
            pass
        except BaseException as error:
            self.failure = messages.model_failed(error, self.writes.suspects)
        finally:
            record.undo(depth)
            self._outer = None
        return result

    def build(self, machine: Machine) -> None:
        """Run the machine that only collects invokes; they are added to `machines`."""
        record = self.record
        depth = len(record)
        record.append((set_current, advanced()))
        record.append((self._restore_state, state_outside()))
        record.append((machine.close_if_cut,))
        try:
            set_current(None)
            self.drive(machine, None)
            if not machine.is_done:
                raise InternalError("a block that only collects invokes waits for something")
        except RunAborted:
            pass
        finally:
            try:
                record.undo(depth)
            except BaseException:
                record.undo(depth)
                raise

    def begin_carrying(self, machine: Machine) -> None:
        """Carry a machine that looked plain, and can ask for any module from now on.

        Modules that get their taps only now may have been visited before.
        """
        super().begin_carrying(machine)
        if not self._is_mounted:
            # `_close` takes it down, so it has to know beforehand
            self._is_mounted = True
            self.mount(self)
        if self._expects_anything or self.has_ended:
            return
        self._expects_anything = True
        before = {*self._taps}
        for place in self.places():
            self.tap_for(place)
        if self.is_called:
            for key, tap in self._taps.items():
                if key not in before:
                    tap.put_late(self.step if self.is_stepped else None)

    def is_offering_inputs(self, tap: Tap) -> bool:
        """Return whether the arguments of a place are on offer, so that its call follows."""
        offer = self._offer
        return offer is not None and offer.tap is tap and offer.phase == INPUTS

    def fail_waiting(self, tap: Tap, error: Exception) -> None:
        """Raise an error in all machines that wait at a tap."""
        while tap.waiting:
            self.drive(tap.waiting.pop(0), error=error)

    def _finish(self, result: Any) -> Any:
        """Serve requests after the model's last forward, and raise for those that cannot be met.

        Returns:
            The result, or what a block has replaced it by.
        """
        self.has_ended = True
        if self.is_partial:
            # the machines that still wait do so for values that only the real run has
            return result
        # an invoke that goes on behind its loop may read it before the next invoke does
        self.result = (result,)
        self._results = {}
        if self.step_waiters or self.visit_waiters:
            for machine, steps in self._take_waiters():
                if self._begins_last_round(machine, steps):
                    continue
                self.warn_of_missing(machine, steps)
                self.drive(machine, False)
        for machine in self.machines:
            request = machine.pending
            if request is not None and request[0] in (requests.READ, requests.WRITE):
                place = target_of(request)
                if place._module is None and not isinstance(place, StreamPlace):
                    self.drive(machine, request=request)
        for machine in self.machines:
            if not machine.is_done and machine.pending is not None:
                error = lateness.never_came(self, machine, machine.pending)
                self.drive(machine, error=error)
        return self.result[0]

    def _begins_last_round(self, machine: Machine, steps: Steps) -> bool:
        """Begin the round of a loop over steps that has the last tokens, and no forward."""
        stream = self.stream
        if stream is None or not names_stream(machine):
            return False
        if steps.next_step != self.step + 1 or self.step + 1 >= len(stream.values):
            return False
        steps.begin()
        self.drive(machine, True)
        return True

    def _take_waiters(self) -> list[tuple[Machine, Steps]]:
        waiters = [*self.step_waiters, *self.visit_waiters]
        self.step_waiters = self.visit_waiters = ()
        return sorted(waiters, key=lambda waiter: waiter[0].order)

    def warn_of_missing(self, machine: Machine, steps: Steps) -> None:
        if steps.is_open and not self.warns_of_open:
            return
        taken = self.step + 1 if self.is_stepped else None
        messages.warn_of_missing_steps(machine, steps, taken)

    def take_down(self) -> None:
        """End the run, wherever it was interrupted; if it has ended, do nothing."""
        self.record.undo()
        self._close()

    def _close(self) -> None:
        """Restore the modules, and close the machines that still wait.

        It can be called again after an interrupt, and goes on from there.
        """
        self.has_ended = True
        self.result = None
        self._results = {}
        if self._is_mounted:
            self.unmount(self)
            self._is_mounted = False
        self._remove_taps()
        self._offer = None
        for machine in self.machines:
            if machine.is_done and not machine.is_cut:
                continue
            # it waits for a value, or is ready to resume after a barrier
            try:
                machine.close()
            except BaseException as error:
                clean(error)
                # an interrupt is not lost because something else had gone wrong before
                if self.failure is None or (is_interrupt(error) and not is_interrupt(self.failure)):
                    self.failure = error
                # if it was one from outside, which kept the machine from being closed
                with suppress(Exception):
                    machine.close()
        self.shared = {}
        if self.is_stepped:
            # they make machines in the run that has this driver
            self.each_step.clear()
        # offers that an error has cut short name their taps
        # taps refer to their driver: without them its reference count falls to zero
        self._taps.clear()

    def _restore_state(self, outside: StateOutside) -> None:
        """Restore torch's modes that an interrupt may have kept a `with` from restoring."""
        restore_after_interrupt(outside, self.failure)

    def may_stop(self) -> bool:
        return self.is_stopped and (
            self.stops_all or all(machine.is_done for machine in self.machines)
        )

    # taps call these

    def begin_step(self) -> None:
        """Begin the next step: the module whose calls are steps is called."""
        self.step += 1
        for machine in [*self.machines]:
            request = machine.pending
            if request is None or machine.step >= self.step or phase_of(request) is None:
                continue
            tap = self._taps.get(key_of(target_of(request)))
            if tap is None or tap.place._module is None or tap.is_beside:
                continue
            if machine in tap.waiting:
                tap.waiting.remove(machine)
                self.drive(machine, error=messages.not_in_step(self, machine, request))
        if self.step > 0:
            for make in self.each_step:
                machine = make()
                machine.step = self.step
                machine.is_usual = self.is_direct and not machine.program.first_items
                self.machines.append(machine)
                self.drive(machine, None)
        if self.step_waiters:
            due = [waiter for waiter in self.step_waiters if waiter[1].next_step == self.step]
            self.step_waiters = [waiter for waiter in self.step_waiters if waiter not in due]
            self._begin_rounds(due)

    def watch(self, tap: Tap, args: Any, kwargs: Any, output: Any) -> None:
        """Show the watchers a visit that is over."""
        for watcher in self.watchers:
            watcher.record(tap.place, (args, kwargs), output, self.factor)

    def begin_visit(self, index: int) -> None:
        """A module is called for the `index`-th time, in a run with one forward of the root."""
        self.most_visits = max(self.most_visits, index + 1)
        due = [waiter for waiter in self.visit_waiters if waiter[1].next_step == index]
        self.visit_waiters = [waiter for waiter in self.visit_waiters if waiter not in due]
        self._begin_rounds(due)

    def _begin_rounds(self, due: list[tuple[Machine, Steps]]) -> None:
        for machine, steps in sorted(due, key=lambda waiter: waiter[0].order):
            steps.begin()
            self.drive(machine, True)

    # requests

    def seen_result(self, machine: Machine) -> Any:
        """Return the part of the run's result that a machine sees, once there is a result."""
        if self.result is None:
            raise InternalError("the run has no result yet")
        (result,) = self.result
        if machine.rows is None:
            return result
        if machine.rows not in self._results:
            cut = Cut(machine.rows, self.factor, self.result_factor)
            self._results[machine.rows] = narrow(result, cut)
        return self._results[machine.rows]

    def replace_result(self, result: Any) -> None:
        self.result = (result,)
        self._results = {}

    def offered(self, machine: Machine, request: Request) -> Offer | None:
        """Return the current offer if it is the one a request is for."""
        offer = self._offer
        if offer is None or offer.phase != phase_of(request):
            return None
        if offer.tap is not self._taps.get(key_of(target_of(request))):
            return None
        if offer.tap.place._module is not None and offer.index != machine.step:
            return None
        if self.apart and machine.rows in self.apart:
            return None
        if offer.handed:
            # edits made so far come before this request
            take_edits(offer)
        return offer

    def seen(self, machine: Machine, offer: Offer, port: str) -> Any:
        """Return the part of the current offer that a machine sees."""
        cut = self.cut(machine, offer)
        seen = seen_by(machine, offer, port, cut)
        if cut is not None:
            for tensor in cut.whole:
                self.writes.watch_whole(machine, tensor, name_of(offer.tap.place, port))
        return seen

    def cut(self, machine: Machine, offer: Offer) -> OfferCut | None:
        """Return how an offer is cut for a machine, None if it sees all of it."""
        if machine.rows is None or offer.is_whole:
            return None
        may_copy = not self.is_read_only
        may_alias = may_copy and torch.is_grad_enabled()
        return OfferCut(machine.rows, self.factor, offer, may_copy=may_copy, may_alias=may_alias)

    def park(self, machine: Machine, request: Request, place: Place) -> Any:
        """Let a machine wait at a place, unless what it waits for cannot come any more."""
        if machine.is_builder:
            raise messages.value_in_builder(
                request,
                has_invokes=machine.program.has_invokes,
                is_session=self.is_session,
            )
        if not self._is_of_model(place):
            if self._outer is not None:
                # this run stands in a block of another model's run, which may have the value
                answer: Any = self._outer.request(request)
                return answer
            raise messages.other_model(request, place, self.root)
        tap = self.tap_for(place)
        error = (
            tap.missing or lateness.too_late(self, machine, request, tap) or tap.uncovered(machine)
        )
        if error is not None:
            raise error
        phase = phase_of(request)
        machine.wait(request, phase)
        if phase == INPUTS:
            tap.wants_inputs, tap.is_common = True, False
        tap.waiting.append(machine)
        return PARKED
