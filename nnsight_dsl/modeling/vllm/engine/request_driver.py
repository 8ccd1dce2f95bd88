"""The driver of one request's programs, and its taps.

A vLLM batch has requests at different steps, so each request has its own driver, which counts the
request's steps. But a module is called once for all requests, so the work of a tap is shared out:

    EngineTap      one for a module          makes the call, counts visits, cuts out each part
    ModuleTap      one for a request there   the machines that wait, and the step they mean

`OperationRequestTap` is a request's tap on an operation in a forward. A plain `RequestTap` is one
on the logits or the samples. The driver is offered a `Portion` in place of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from nnsight_dsl.modeling.vllm.engine.slots import Slot
from nnsight_dsl.modeling.vllm.engine.token_spans import Edit
from nnsight_dsl.modeling.vllm.engine_places import EnginePlace, EngineRoot
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.errors import EngineError, InternalError, OutOfOrderError
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.runtime.values.offer import Offer
from nnsight_dsl.runtime.values.offers import Writes
from nnsight_dsl.runtime.values.views import OfferCut
from nnsight_dsl.transforms.requests import OUTPUT, READ, SKIP, Phase


class VisitCounts(Protocol):
    """The visits of a module in one forward, counted for all requests; `EngineTap`.

    Attributes:
        forward: number of the last forward that called the module, 0 for none.
        begun: calls that have begun in that forward.
        done: calls that have ended in it.
        is_first_done: True once the first of them has ended.
        running: number of the call that is running; None between calls.
    """

    forward: int
    begun: int
    done: int
    is_first_done: bool
    running: int | None


class TappedForward(Protocol):
    """A module's forward with taps on its operations; `Inside` in `operations.py`."""

    def covers(self, tap: OperationRequestTap) -> bool:
        """Return whether the call that is running has a tap on the operation."""


class TappingEngine(Protocol):
    """The engine as the taps of a request see it.

    Attributes:
        is_compiled: True if vLLM has compiled the model, so that no module is called.
    """

    is_compiled: bool

    @property
    def leader(self) -> object | None:
        """None if the model is on one device."""

    def add_tap(self, tap: ModuleTap) -> VisitCounts:
        """Let a module offer its values to one more request; return its counts of visits."""

    def remove_tap(self, tap: ModuleTap) -> None:
        """Stop offering a module's values to a request."""

    def add_operation(self, tap: OperationRequestTap) -> None:
        """Let an operation offer its values to one more request."""

    def remove_operation(self, tap: OperationRequestTap) -> None:
        """Stop offering an operation's values to a request."""

    def inside(self, module: nn.Module) -> TappedForward | None:
        """Return the taps on operations in a module's forward; None without any."""


class RequestTap(Tap):
    """A request's tap on a place, which counts the visits that belong to the request.

    Attributes:
        ports: the ports that a program may ask for.
        pieces: by port, the values of the prompt's pieces until now (chunked prefill).
        edits: by phase and number of the call in its forward, the edits of the request, to be
            repeated after preemption.
    """

    driver: RequestDriver

    def __init__(self, place: Place, driver: Driver, *, is_stepping: bool) -> None:
        super().__init__(place, driver, is_stepping=is_stepping)
        self.ports: set[str] = set()
        self.pieces: dict[str, list[Any]] = {}
        self.edits: dict[tuple[str, int], list[Edit]] = {}

    def expect(self, port: str) -> None:
        """Note that a program may ask for a port."""
        if port != SKIP:
            self.ports.add(port)

    def install(self) -> None:
        """Do nothing: the engine offers this place without a tap on a module."""

    def remove(self) -> None:
        """Do nothing: nothing was installed."""

    def wants(self, phase: str, index: int | None) -> bool:
        """Return whether a machine waits for a phase of a visit.

        Args:
            phase: `"inputs"` or `"output"`.
            index: the occurrence of the visit; None for one that no location refers to.
        """
        for machine in self.waiting:  # noqa: SIM110 (a frame less than `any` of these)
            if machine.phase == phase and machine.step == index:
                return True
        return False

    def begin_visit(self) -> None:
        """Count a visit that begins, in a forward that offers the place."""
        self.index = self.begin()

    def end_visit(self) -> None:
        """Count a visit that has ended."""
        self.done += 1
        if self.index is not None:
            self.done_step = self.index
        self.index = None


class ModuleTap(RequestTap):
    """A request's tap on a module.

    All requests of a forward see the same calls of a module, so the shared `EngineTap` counts the
    calls, and the counts here are computed from its counts and the request's step. They are right
    for the running step, and no other step is asked for.

    Attributes:
        shared: the counts of the shared tap; set by `install`.
    """

    shared: VisitCounts

    def install(self) -> None:
        """Let the shared tap on the module offer its values to this request."""
        self.shared = self.driver.engine.add_tap(self)

    def remove(self) -> None:
        """Take this request off the shared tap."""
        self.driver.engine.remove_tap(self)

    @property
    def _is_now(self) -> bool:
        """True if the shared counts are of the request's running step, not of an earlier one."""
        return self.shared.forward == self.driver.forward

    @property
    def begun(self) -> int:  # type: ignore[override]
        """Number of calls that have begun, counting one for each earlier step."""
        before = max(self.driver.step, 0) if self.shared.forward else 0
        return before + self.shared.begun if self._is_now else before

    @property
    def done(self) -> int:  # type: ignore[override]
        """Number of calls that have ended, counting one for each earlier step."""
        before = max(self.driver.step, 0) if self.shared.forward else 0
        return before + self.shared.done if self._is_now else before

    @property
    def begun_step(self) -> int:  # type: ignore[override]
        """The last step in which a call has begun: the running step, or the one before."""
        step = self.driver.step
        return step if self.shared.begun and self._is_now else step - 1

    @property
    def done_step(self) -> int:  # type: ignore[override]
        """The last step whose first call has ended: the running step, or the one before."""
        step = self.driver.step
        return step if self.shared.is_first_done and self._is_now else step - 1

    @property
    def index(self) -> int | None:  # type: ignore[override]
        """The running step, during its first call of the module; None at other times."""
        return self.driver.step if self.shared.running == 0 and self._is_now else None

    def begin_visit(self) -> None:
        """The engine's tap counts."""

    def end_visit(self) -> None:
        """The engine's tap counts."""


class OperationRequestTap(RequestTap):
    """A request's tap on an operation inside a module's forward.

    Attributes:
        is_around: True if a tap before the operation is needed: its arguments are asked for, or
            it is skipped, or the requests to come are not known. Never set back to False.
    """

    place: OperationPlace
    can_refuse = True

    def __init__(self, place: OperationPlace, driver: RequestDriver) -> None:
        super().__init__(place, driver, is_stepping=False)
        self.is_around = not driver.is_tapping_ahead

    def install(self) -> None:
        """Add this tap to the forward around the operation, from its next call on."""
        parent = self.place._parent
        if parent is None:
            raise InternalError("an operation stands in something")
        self.driver.tap_for(parent)
        self.driver.engine.add_operation(self)

    def remove(self) -> None:
        """Take this request off the operation."""
        self.driver.engine.remove_operation(self)

    def expect(self, port: str) -> None:
        """Prepare for requests of a port: all but the output need a tap before the operation."""
        self.is_around = self.is_around or port != OUTPUT

    def uncovered(self, machine: Machine) -> Exception | None:
        """Return the error for a machine that asks while the forward runs without this tap.

        Returns:
            The error; None if the forward is not running, or has the tap.
        """
        parent = self.place._parent
        if parent is None:
            raise InternalError("an operation stands in something")
        above = self.driver.tap_for(parent)
        inside = self.driver.engine.inside(self.place._owner)
        is_running = above.index == machine.step and not self.driver.is_offering_inputs(above)
        if not is_running or inside is None or inside.covers(self):
            return None
        return OutOfOrderError(
            f"{self.place._path} was asked for while the forward that it is in was already "
            "running, and was not expected there; spell the operation out in the block's text "
            "from a name that stands before the block, or ask before the forward is called"
        )


class RequestDriver(Driver):
    """The driver of one request's programs.

    Attributes:
        engine: the engine.
        forward: number of the forward of the running step, 0 before the first.
        slot: its request's slot in the running forward; None in a forward without the request, and
            between forwards. Only the engine sets it, at the start and the end of a forward.
        missed: the error message for a module that is asked for in this step, if part of the
            prompt was computed without being offered; empty if there is none.
    """

    def __init__(self, root: EngineRoot, engine: TappingEngine) -> None:
        super().__init__(root, root)
        # the engine begins steps (`Run.begin_step`), not a tap on the root
        self.stepping = None
        self.writes = PortionWrites()
        # an offer is a `Portion`, from which `seen` gets the value
        self.is_direct = False
        self.engine = engine
        self.missed = ""
        self.forward = 0
        # of a `Run`, which owns this driver
        self.slot: Slot[Any] | None = None

    def _new_tap(self, place: Place) -> Tap:
        if isinstance(place, OperationPlace):
            reason = operation(place, self.engine.is_compiled, self.engine.leader is not None)
            if reason is not None:
                raise EngineError(reason)
            return OperationRequestTap(place, self)
        is_module = place._module is not None and not isinstance(place, EnginePlace)
        if is_module and self.engine.is_compiled:
            raise EngineError(compiled(name_of(place, "output")))
        return (ModuleTap if is_module else RequestTap)(place, self, is_stepping=False)

    def _tap_all(self) -> None:
        if not self.engine.is_compiled:
            super()._tap_all()

    def watch_for(self, places: Sequence[Place], machine: Machine) -> None:
        """Tap the places that a cache records.

        Raises:
            EngineError: vLLM has compiled the model, so no module is called.
        """
        if self.engine.is_compiled:
            raise EngineError(compiled("what a cache keeps"))
        super().watch_for(places, machine)

    def offer(self, tap: Tap, phase: Phase, value: Any) -> Any:
        """Offer a portion to the machines that wait for it; return it.

        In nearly all visits, one machine reads the output. That case is inlined here, which saves
        3 of 12 µs; all others go to `Driver.offer`.
        """
        machine = tap.waiting[0] if len(tap.waiting) == 1 else None
        request = None if machine is None else machine.pending
        if (
            machine is None
            or request is None
            or request[0] != READ
            or request[2] != OUTPUT
            or machine.step != tap.index
            or machine.program.first_items
            or self.missed
            or self.log is not None
            or self.own_calls
        ):
            return super().offer(tap, phase, value)
        tap.waiting = []
        offer = Offer()
        offer.tap, offer.phase, offer.index = tap, phase, tap.index
        offer.value, offer.is_whole, offer.handed = value, False, ()
        outer, self._offer = self._offer, offer
        try:
            try:
                answer, error = value.seen(OUTPUT), None
            except Exception as raised:
                clean(raised)
                answer, error = None, raised
            # an error is raised in the block, at the line that asked
            self.drive(machine, answer, error)
        finally:
            self._offer = outer
        return value

    def seen(self, machine: Machine, offer: Offer, port: str) -> Any:
        """Return the value that the request's programs see at a port of the current offer.

        Raises:
            EngineError: part of the prompt was computed without being offered.
        """
        if self.missed and not isinstance(offer.tap.place, EnginePlace):
            raise EngineError(self.missed)
        return offer.value.seen(port)


class PortionWrites(Writes):
    """Writes into the portion that is on offer, which checks that the value fits."""

    def put(
        self,
        machine: Machine,
        offer: Offer,
        location: tuple[Place, str],
        seen: Any,
        new: Any,
        cut: OfferCut | None,
    ) -> None:
        """Replace the value that the request's programs see at a port."""
        offer.value.put(location[1], new)


def compiled(location: str) -> str:
    """Return the message for a location inside a model that vLLM has compiled."""
    return (
        f"{location} lies inside a model that the engine has compiled, where no value is offered; "
        "make the engine with VLLM(..., enforce_eager=True)"
    )


def operation(place: OperationPlace, is_compiled: bool, is_sharded: bool) -> str | None:
    """Return the message for an operation that the engine cannot serve; None if it can.

    Args:
        place: the operation.
        is_compiled: True if vLLM has compiled the model.
        is_sharded: True if the model is split over several workers.
    """
    if is_compiled:
        return compiled(place._path)
    if len(place._chain) > 1:
        return (
            f"{place._path} is an operation of a function that another operation calls, which is "
            "not offered in an engine; ask for that operation, or for one of a module's own forward"
        )
    if is_sharded:
        return (
            f"{place._path} is an operation inside a forward, of which each worker of an engine "
            "with tensor_parallel_size > 1 does a part, and how they go together is not known; "
            "read the output or the input of a module, or make the engine with "
            "tensor_parallel_size=1"
        )
    return None
