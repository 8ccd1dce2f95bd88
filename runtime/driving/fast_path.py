"""Fast path for a trace with one plain block. The driver is reused between runs.

Most traces are one plain block on all rows, and most runs of one are like the run before. For these
`LoneDriver` inlines `Driver.run` and `Inlined.drive`, for two reasons. Between two runs a forward
evicts the code of the loop from the processor's cache, so that each function entered costs 0.3 µs
to fetch, and each object about as much: without `LoneDriver.serve` twelve reads take half as long
again. And such a run leaves its driver unchanged, so that the next run can use it.

In any other case the run falls back to the general loop, with the same machine and taps. The
property test in `tests/runtime/driving/test_fast_path.py` compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from nnsight_dsl.runtime.errors import RunAborted
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.record import is_interrupt
from nnsight_dsl.runtime.tapping.kept_taps import Fixtures, Needs
from nnsight_dsl.runtime.tapping.taps import Tap, is_usual_call
from nnsight_dsl.runtime.values.known_types import is_known
from nnsight_dsl.transforms.requests import END, OUTPUT, READ, WRITE, Request

from . import messages
from .driver import Driver

_Tensor = torch.Tensor


class LoneDriver(Driver):
    """The driver of one plain machine that sees all rows, in runs with one forward.

    Attributes:
        is_as_made: True if no run so far needed the general loop, so that the driver can be used
            again. Set to False by each method that falls back.
    """

    is_as_made = True
    _grad_before = True
    is_called = True
    _by_place: Mapping[int, Tap] = MappingProxyType({})

    def __init__(self, root: Place, fixtures: Fixtures | None, *, is_known: bool) -> None:
        """Make a driver.

        Args:
            root: place of the root module.
            fixtures: taps of the places that the machine can ask for.
            is_known: True if it can ask for no other place.
        """
        super().__init__(root)
        self._own = fixtures if is_known else None
        self.is_as_made = is_known
        if self._own is not None:
            self._taps.update(self._own.taps)
            self._by_place = self._own.by_place

    def run_alone(
        self,
        machine: Machine,
        thread: int,
        function: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
    ) -> bool:
        """Run the model with a machine; an error is in `failure` afterwards.

        Returns:
            Whether the driver can be used for another run.
        """
        own = self._own
        # before the taps are put: they compare the thread
        self.thread = thread
        is_short = self.is_as_made
        if is_short:
            self.machines.append(machine)
            machine.is_usual = not machine.program.first_items
            try:
                if own is not None:
                    self.has_grad = self._grad_before = torch.is_grad_enabled()
                    self.is_usual = is_usual_call()
                    is_short = own.put(self)
                if is_short:
                    self.serve(machine, None, None)
                    result = function(*args, **kwargs)
                    if not machine.is_done:
                        self.is_as_made = False
                        # a model may have caught the error of a machine
                        if self.failure is None:
                            self._finish(result)
            except RunAborted:
                pass
            except BaseException as error:
                self.failure = messages.model_failed(error, self.writes.suspects)
        if not is_short:
            self._run_long(machine, function, args, kwargs)
            return False
        if not (self.is_as_made and machine.is_done and self.failure is None):
            self._close()
            return False
        if own is not None:
            own.remove()
        self.machines.clear()
        return True

    def _run_long(
        self, machine: Machine, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        """Run the model by the general loop."""
        self.is_as_made = False
        self._by_place = {}
        self._taps.clear()
        self.machines.clear()
        if self._own is not None:
            machine.needs = Needs(self._own, (), True)
        self.add(machine)
        self.run(function, args, kwargs)

    def _tap_ahead(self) -> None:
        super()._tap_ahead()
        if self._put is not None:
            self._by_place = self._put.by_place

    def _close(self) -> None:
        own = self._own
        if own is not None and own.user is self:
            self._put = own
        super()._close()
        if is_interrupt(self.failure) or is_interrupt(sys.exception()):
            # it may have come inside a `with torch.no_grad():`
            torch.set_grad_enabled(self._grad_before)
        # taps refer to their driver
        self._by_place = {}

    def _put_tap(self, place: Place) -> Tap:
        self.is_as_made = False
        return super()._put_tap(place)

    def drive(
        self,
        machine: Machine,
        answer: Any = None,
        error: BaseException | None = None,
        request: Request | None = None,
    ) -> None:
        """Fall back to the general loop."""
        self.is_as_made = False
        super().drive(machine, answer, error, request)

    def serve(
        self, machine: Machine, answer: Any, at: Tap | None, request: Request | None = None
    ) -> Any:
        """Answer as `Inlined.serve` does, in one loop if outputs are read and written in order."""
        send, is_usual = machine.send, machine.is_usual and request is None
        if send is None or self._offer is not None or not is_usual:
            return super().serve(machine, answer, at, request)
        run, value, by_place = machine.context.run, answer, self._by_place
        machine.pending = None
        while True:
            if not (type(answer) is _Tensor or answer is None or is_known(answer)):
                return super().serve(machine, value, at)
            try:
                request = run(send, answer)
            except BaseException as raised:
                self._fail(machine, raised)
            verb, step = request[0], machine.step
            if verb == READ:
                _, place, port = request
                try:
                    tap = by_place[id(place)]
                except KeyError:
                    break
                if port != OUTPUT or place._module is not tap.module:
                    break
                if tap is at:
                    if tap.index != step:
                        break
                    answer = value
                    continue
                if tap.done_step >= step or self.has_ended:
                    break
                for above in tap.above:
                    if above.done_step >= step:
                        return self._long_way(machine, request, value, at)
                machine.pending, machine.phase = request, OUTPUT
                tap.waiting.append(machine)
                return value
            if verb == WRITE:
                # a tensor is replaced by one of the same shape, dtype and device
                _, new, place, port = request
                is_here = at is not None and by_place.get(id(place)) is at and at.index == step
                if not is_here or port != OUTPUT or not type(new) is type(value) is _Tensor:
                    break
                try:
                    # some tensors have no shape, as strided nested ones
                    is_alike = new.shape == value.shape and new.dtype is value.dtype
                except RuntimeError:
                    break
                # on a CPU 0.4 µs less than devices, which are made to be compared
                if not (is_alike and ((new.is_cpu and value.is_cpu) or new.device == value.device)):
                    break
                value, answer = new, None
                continue
            if verb != END:
                break
            machine.result = request[1] if len(request) > 1 else None
            machine.finish(is_stopped=False)
            return value
        return self._long_way(machine, request, value, at)

    def _long_way(self, machine: Machine, request: Request, value: Any, at: Tap | None) -> Any:
        self.is_as_made = False
        try:
            request = self.for_this_run(machine, request)
        except BaseException as raised:
            self._fail(machine, raised)
        return super().serve(machine, value, at, request)
