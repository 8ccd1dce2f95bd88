"""The loop of `loop.py` with the common cases of a forward inlined.

Every access goes through this loop, so the common cases are inlined: reading or writing a whole
value that is on offer, and parking on a read. Everything else is dispatched through `ANSWERS`. A
read takes three Python frames, with those of the tap and of the block; the general form, of
`ANSWERS` and `Driver.park`, takes a dozen more (`tests/runtime/driving/test_frames.py` counts
them).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from nnsight_dsl.runtime.errors import RunAborted
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.runtime.values.known_types import is_known
from nnsight_dsl.runtime.values.offer import Offer
from nnsight_dsl.runtime.values.offers import take_edits
from nnsight_dsl.runtime.values.rows import parts_of
from nnsight_dsl.runtime.values.views import settle
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import BEFORE_CALL, INPUTS, OUTPUT, READ, WRITE, Phase, Request

from .answers import ANSWERS, open_run
from .foreign import ON_TARGET
from .loop import PARKED
from .state import RunState

_order = attrgetter("order")
_Tensor = torch.Tensor
_NOTHING: Sequence[Any] = ()
_NONE: Any = None
_TARGETS = dict.fromkeys((*ON_TARGET, requests.OPEN), 0) | {READ: 1, WRITE: 2}
"""Where a request has the place it is for; 0, which is none, where that has to be looked up."""


class Inlined(RunState):
    """The part of a driver that offers values and resumes machines."""

    _offer: Offer | None
    _taps: dict[int, Tap]

    def offer(self, tap: Tap, phase: Phase, value: Any) -> Any:
        """Offer `(args, kwargs)` before a call, or its output after it.

        Returns:
            The value, or its replacement if a machine has written one.
        """
        if self.writes.watched:
            self.writes.begin()
        offer = Offer()
        offer.tap = tap
        offer.phase = phase
        index = offer.index = tap.index
        offer.value = value
        offer.is_whole = self.own_calls > 0
        offer.handed = _NOTHING
        offer.split = offer.views = _NONE
        outer, self._offer = self._offer, offer
        due: list[Machine] = tap.waiting
        others: list[Machine] = []
        for machine in due:
            if machine.phase != phase or machine.step != index:
                others = [one for one in due if one.phase != phase or one.step != index]
                due = [one for one in due if one.phase == phase and one.step == index]
                break
        if self.apart:
            others = [*others, *(one for one in due if one.rows in self.apart)]
            due = [one for one in due if one.rows not in self.apart]
        tap.waiting = others
        parts = None
        if len(due) > 1:
            due.sort(key=_order)
            # the rows of all inputs at once, where most of them are asked for
            is_most = 2 * len(due) > len(self.counts) > 1
            if is_most and self.factor == 1 and not offer.is_whole:
                parts = parts_of(value, self.counts, sum(self.counts), tap.place._module)
                if parts is not None:
                    offer.split = value, parts
        try:
            for machine in due:
                request = machine.pending
                if request is None:
                    continue
                # the answer to nearly all requests; `ANSWERS` knows the others
                is_usual = machine.is_usual and request[0] == READ and request[2] == phase
                rows = machine.rows
                if is_usual and rows is None:
                    self.drive(machine, offer.value)
                elif is_usual and rows is not None and parts is not None and offer.value is value:
                    self.drive(machine, parts[rows.number])
                else:
                    self.drive(machine, None, None, request)
                if offer.handed:
                    take_edits(offer)
                    offer.handed = _NOTHING
            if offer.views:
                settle(offer)
        finally:
            self._offer = outer
        return offer.value

    def serve(
        self, machine: Machine, answer: Any, at: Tap | None, request: Request | None = None
    ) -> Any:
        """Answer the only machine that waits at a tap with the output, as `offer` does for many.

        Args:
            machine: the machine.
            answer: the output.
            at: the tap; None if the machine starts, and nothing is on offer.
            request: its pending request, to be answered first; None to answer with the output.

        Returns:
            The output, or its replacement.
        """
        if at is None:
            self.drive(machine, answer, None, request)
            return answer
        outer = self._offer
        own = self._offer = Offer()
        own.tap = at
        own.phase = OUTPUT
        own.index = at.index
        own.value = answer
        own.is_whole = self.own_calls > 0
        own.handed = _NOTHING
        own.split = own.views = _NONE
        try:
            self.drive(machine, answer, None, request)
        finally:
            self._offer = outer
        if own.handed:
            take_edits(own)
            # values handed out refer to the offer
            own.handed = _NOTHING
        if own.views:
            settle(own)
        return own.value

    def drive(
        self,
        machine: Machine,
        answer: Any = None,
        error: BaseException | None = None,
        request: Request | None = None,
    ) -> None:
        """Resume a machine, and answer its requests until it waits or is done.

        Args:
            machine: the machine.
            answer: the answer to its last request.
            error: raised in it in place of an answer.
            request: the request it waits with, to be answered first, now that its value is there.
        """
        taps = self._taps
        while True:
            if request is None:
                machine.pending = None
                try:
                    if error is not None:
                        request = machine.throw(error)
                    else:
                        send = machine.send
                        if send is not None and not (
                            type(answer) is _Tensor or answer is None or is_known(answer)
                        ):
                            self.begin_carrying(machine)
                            send = None
                        if send is None:
                            request = machine.advance(answer)
                        else:
                            # `advance`, without its Python frame
                            request = machine.context.run(send, answer)
                    answer = error = None
                    number = 1 if request[0] == READ else _TARGETS.get(request[0])
                    if number is not None and not isinstance(request[number], Place):
                        request = self.for_this_run(machine, request)
                except BaseException as raised:
                    self._fail(machine, raised)
            try:
                if self.writes.watched:
                    self.writes.check(machine)
                if request[0] == READ:
                    _, place, port = request
                    tap, step = taps.get(id(place._module)), machine.step
                    if tap is None:
                        pass
                    elif (
                        (offer := self._offer) is not None
                        and offer.tap is tap
                        and offer.phase == (INPUTS if port in BEFORE_CALL else OUTPUT)
                    ):
                        if (
                            offer.index == step
                            and port == offer.phase
                            and machine.rows is None
                            and machine.is_usual
                            and not offer.handed
                        ):
                            answer, request = offer.value, None
                            continue
                    elif (
                        (tap.done_step if port == OUTPUT else tap.begun_step) < step
                        and self.step <= step
                        and tap.place is place
                        and not (self.has_ended or machine.is_builder or tap.can_refuse)
                    ):
                        for above in tap.above:
                            if above.done_step >= step:
                                break
                        else:
                            machine.pending, machine.phase = request, OUTPUT
                            if port in BEFORE_CALL:
                                machine.phase = INPUTS
                                tap.wants_inputs, tap.is_common = True, False
                            tap.waiting.append(machine)
                            if not self.ready:
                                break
                            machine, answer = self._next_ready()
                            request = None
                            continue
                elif request[0] == WRITE and self._replaces(machine, request):
                    answer = request = None
                    continue
                answer = ANSWERS[request[0]](self, machine, request)
            except RunAborted:
                raise
            except BaseException as raised:
                clean(raised)
                error = raised
                request = None
                continue
            request = None
            if answer is PARKED:
                if not self.ready:
                    break
                machine, answer = self._next_ready()

    def _replaces(self, machine: Machine, request: Request) -> bool:
        """Replace a tensor on offer by one like it; return False if this is another write."""
        _, value, place, port = request
        offer = self._offer
        if (
            offer is not None
            and port == OUTPUT == offer.phase
            and offer.tap is self._taps.get(id(place._module))
            and offer.index == machine.step
            and machine.rows is None
            and machine.is_usual
            and not offer.handed
            and isinstance(old := offer.value, torch.Tensor)
            and isinstance(value, torch.Tensor)
            # strided nested tensors have no shape
            and not (old.is_nested or value.is_nested)
            and old.shape == value.shape
            and old.dtype == value.dtype
            and old.device == value.device
        ):
            offer.value = value
            return True
        return False

    def begin_carrying(self, machine: Machine) -> None:
        """Carry a machine from here on: its answer is of a type that may run a user's code."""
        machine.begin_carrying()

    def answer(self, machine: Machine, request: Request) -> Any:
        """Return the answer to a request, PARKED if the machine has to wait for it."""
        return ANSWERS[request[0]](self, machine, request)

    def for_this_run(self, machine: Machine, request: Request) -> Request:
        """Answer requests on objects that belong to no model, and run the traces of a session."""
        while True:
            request = super().for_this_run(machine, request)
            if request[0] != requests.OPEN:
                return request
            request = machine.call(open_run, machine, request)
