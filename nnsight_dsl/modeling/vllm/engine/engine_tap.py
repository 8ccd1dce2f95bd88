"""The tap on a module of an engine, shared by all requests that address the module.

A module is called once for all requests of a batch. Its tap makes that call, and offers each
request its own tokens: of the inputs before the call, and of the output after it.

    visit:   offer (args, kwargs)    call the module    offer the output    show both to the caches

A request can write into its part, so each offer returns the value to go on with. What a request
knows of the module by itself (the machines that wait, the step) is in its `ModuleTap`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

from torch import nn

from nnsight_dsl.modeling.vllm.engine.context import EngineContext
from nnsight_dsl.modeling.vllm.engine.operations import Inside
from nnsight_dsl.modeling.vllm.engine.portions import Portion, copies_of
from nnsight_dsl.modeling.vllm.engine.ranks import WATCH
from nnsight_dsl.modeling.vllm.engine.request_driver import ModuleTap, RequestTap
from nnsight_dsl.modeling.vllm.engine.request_run import Run
from nnsight_dsl.modeling.vllm.engine.slots import Slot
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, Phase


class OfferingEngine(EngineContext, Protocol):
    """The engine as the taps on its modules see it.

    Attributes:
        slots: requests with programs in the forward that is running; empty between forwards.
        special: those of `slots` with tokens to keep or edits to repeat.
    """

    slots: list[Slot[Run]]
    special: list[Slot[Run]]

    def inside(self, module: nn.Module) -> Inside | None:
        """Return the taps on operations in a module's forward; None without any."""


class EngineTap:
    """The tap on a module, shared by all requests that address it.

    Attributes:
        taps: the requests' taps on the module, by the id of their driver.
        forward: number of the last forward that called the module, 0 for none.
        begun: calls that have begun in that forward.
        done: calls that have ended in it.
        is_first_done: True once the first of them has ended.
        is_entered: see `runtime.tapping.taps.Tap`.
        running: number in the forward of the call that is running; None between calls.
    """

    looks_inside = False
    is_common = False
    """Always False, so that the runtime leaves every visit to `visit`."""

    __slots__ = (
        "begun",
        "done",
        "driver",
        "forward",
        "is_entered",
        "is_first_done",
        "module",
        "running",
        "taps",
    )

    def __init__(self, engine: OfferingEngine, module: nn.Module) -> None:
        self.driver = engine
        self.module = module
        self.taps: dict[int, ModuleTap] = {}
        self.forward = self.begun = self.done = 0
        self.is_first_done = self.is_entered = False
        self.running: int | None = None

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, and offer each request its part of the values.

        Called in place of the module's call, by the tapped class.
        """
        engine = self.driver
        if engine.serving is not None and engine.serving.own_calls:
            raise EngineError(
                "hook=True offers a call to other blocks, which an engine runs apart; call the "
                "module without it"
            )
        inside = engine.inside(module)
        if inside is not None:
            call = inside.called(call)
        if not engine.slots and engine.leader is None:
            return call(module, *args, **kwargs)
        if self.forward != engine.forward:
            self.forward, self.begun, self.done = engine.forward, 0, 0
            self.is_first_done = False
        outer, self.running = self.running, self.begun
        self.begun += 1
        try:
            args, kwargs, output = self._called(call, module, args, kwargs)
        finally:
            self.is_first_done = self.is_first_done or self.running == 0
            self.done += 1
            self.running = outer
        self._show(args, kwargs, output)
        return output

    def _called(
        self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Call the module, and offer its inputs and its output.

        With several ranks, all stop at the module before and after the call, if a program waits.

        Returns:
            The arguments and the output, with the edits of all requests.
        """
        fresh: set[int] = set()
        leader = self.driver.leader
        if leader is None:
            args, kwargs = self._offered(INPUTS, (args, kwargs), fresh)
            output = call(module, *args, **kwargs)
            return args, kwargs, self._offered(OUTPUT, output, fresh)
        number = leader.number(module)
        with leader.stopped(number, INPUTS):
            args, kwargs = self._offered(INPUTS, (args, kwargs), fresh)
        output = call(module, *args, **kwargs)
        with leader.stopped(number, OUTPUT):
            return args, kwargs, self._offered(OUTPUT, output, fresh)

    def _offered(self, phase: Phase, value: Any, fresh: set[int]) -> Any:
        """Offer each request its part of a value; return the value with the edits of all.

        Before that, requests in a special slot have their values kept or their edits repeated.
        If several requests wait for an output, their copies are made at once, since the copies cost
        more than anything else here.

        Args:
            phase: INPUTS or OUTPUT.
            value: `(args, kwargs)` or the output.
            fresh: ids of tensors in the value that are copies already, so that a write may change
                them.
        """
        call = self.running or 0
        for slot in self.driver.special:
            tap = self.taps.get(slot.key)
            if tap is not None and not slot.run.is_over:
                value = _again(slot, tap, (phase, call), value, fresh)
        if call > 0:
            # a location is the first call of a module in a step; later calls have no occurrence
            return value
        waiting: list[tuple[Slot[Run], ModuleTap]] = []
        for one in self.taps.values():
            if not one.waiting and not one.skips:
                continue
            place: Slot[Run] | None = one.driver.slot
            if place is None or not place.is_offered or place.run.is_over:
                continue
            if one.wants(phase, one.driver.step) or (phase == OUTPUT and one.skips):
                waiting.append((place, one))
        if not waiting:
            return value
        copies = None
        if phase == OUTPUT and self.driver.leader is None:
            copies = copies_of(self.module, value, [slot.span for slot, _ in waiting])
        if copies is None:
            for slot, one in waiting:
                value = slot.run.offer(one, (phase, call), value, slot, fresh)
            return value
        # All copies show the value before the programs' edits. These are applied after all programs
        # have run, one request after the other, each to the value with the edits before.
        served = []
        for (slot, one), copy in zip(waiting, copies, strict=True):
            portion = Portion(
                self.module, value, slot.span, fresh, phase, weights=self.driver.weights, copy=copy
            )
            slot.run.serve(one, phase, portion)
            served.append((slot, one, portion))
        for slot, one, portion in served:
            value = slot.run.taken(one, (phase, call), value, slot, portion)
        return value

    def _show(self, args: Any, kwargs: Any, output: Any) -> None:
        """Show a call that has ended to the caches of programs (`tracer.cache`)."""
        engine = self.driver
        leader = engine.leader
        with nullcontext() if leader is None else leader.stopped(leader.number(self.module), WATCH):
            for slot in engine.slots:
                driver = slot.run.driver
                if driver is None or not driver.watchers or not slot.is_offered:
                    continue
                tap = self.taps.get(slot.key)
                if tap is not None and not slot.run.is_over:
                    slot.run.end_visit(tap, args, kwargs, output, slot.span)


def _again(
    slot: Slot[Run], tap: RequestTap, visit: tuple[str, int], value: Any, fresh: set[int]
) -> Any:
    """Repeat a request's edits of recomputed tokens, and keep values of a piece of its prompt."""
    if slot.again.count:
        value = slot.run.edit_again(tap, visit, value, slot, fresh)
    if slot.is_piece and slot.span.count and not slot.run.reach.may_write:
        slot.run.keep_piece(tap, visit[0], value, slot.span)
    return value
