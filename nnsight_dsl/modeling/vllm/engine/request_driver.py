"""The driver of one request's programs, and what it knows of the places that they address.

Each request has a driver of its own, since it counts its own steps. A module is tapped once for all
requests (`EngineTap` in `engine.py`); what stands here is a request's part of that.
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
from nnsight_dsl.runtime.tapping.checkpoints import OUTPUT, SKIP
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.runtime.values.offers import Offer, Writes
from nnsight_dsl.runtime.values.views import OfferCut
from nnsight_dsl.transforms.requests import READ


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
    """What one request knows of a place that only it counts the visits of.

    Attributes:
        ports: the ports that a program may ask for.
        pieces: by port, what the pieces of the prompt gave until now.
        edits: by phase and call in the forward, the rows that were changed.
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
        """Wait for the engine, which offers the place by itself."""

    def remove(self) -> None:
        """Leave nothing."""

    def wants(self, phase: str, index: int | None) -> bool:
        """Tell whether a program waits for a phase of a visit, by its occurrence."""
        for machine in self.waiting:  # noqa: SIM110 (a frame less than `any` of these)
            if machine.phase == phase and machine.step == index:
                return True
        return False

    def begin_visit(self) -> None:
        """The place is visited in a forward that offers it."""
        self.index = self.begin()

    def end_visit(self) -> None:
        """The visit is over."""
        self.done += 1
        if self.index is not None:
            self.done_step = self.index
        self.index = None


class ModuleTap(RequestTap):
    """What one request knows of a module.

    All requests of a forward see the same calls of a module, so the engine's tap counts them for
    all. What is asked here is only ever about the step that runs.
    """

    shared: VisitCounts

    def install(self) -> None:
        """Let the engine's tap of the module offer values to this request."""
        self.shared = self.driver.engine.add_tap(self)

    def remove(self) -> None:
        """Take this request off the engine's tap."""
        self.driver.engine.remove_tap(self)

    @property
    def _is_now(self) -> bool:
        return self.shared.forward == self.driver.forward

    @property
    def begun(self) -> int:  # type: ignore[override]
        """Calls that have begun, if there was one in each step before."""
        before = max(self.driver.step, 0) if self.shared.forward else 0
        return before + self.shared.begun if self._is_now else before

    @property
    def done(self) -> int:  # type: ignore[override]
        """Calls that have ended."""
        before = max(self.driver.step, 0) if self.shared.forward else 0
        return before + self.shared.done if self._is_now else before

    @property
    def begun_step(self) -> int:  # type: ignore[override]
        """The last step in which a call has begun, or one before the step that runs."""
        step = self.driver.step
        return step if self.shared.begun and self._is_now else step - 1

    @property
    def done_step(self) -> int:  # type: ignore[override]
        """The last step of which the first call has ended, or one before the step that runs."""
        step = self.driver.step
        return step if self.shared.is_first_done and self._is_now else step - 1

    @property
    def index(self) -> int | None:  # type: ignore[override]
        """The step, while its first call of the module runs."""
        return self.driver.step if self.shared.running == 0 and self._is_now else None

    def begin_visit(self) -> None:
        """The engine's tap counts."""

    def end_visit(self) -> None:
        """The engine's tap counts."""


class OperationRequestTap(RequestTap):
    """What one request knows of an operation inside a module's forward.

    Attributes:
        is_around: whether its arguments are wanted, or it is skipped.
    """

    place: OperationPlace
    can_refuse = True

    def __init__(self, place: OperationPlace, driver: RequestDriver) -> None:
        super().__init__(place, driver, is_stepping=False)
        self.is_around = not driver.is_tapping_ahead

    def install(self) -> None:
        """Have the forward around it tapped when it is next called."""
        parent = self.place._parent
        if parent is None:
            raise InternalError("an operation stands in something")
        self.driver.tap_for(parent)
        self.driver.engine.add_operation(self)

    def remove(self) -> None:
        """Take this request off the operation."""
        self.driver.engine.remove_operation(self)

    def expect(self, port: str) -> None:
        """Get ready for requests of a port."""
        self.is_around = self.is_around or port != OUTPUT

    def uncovered(self, machine: Machine) -> Exception | None:
        """Return the error for a machine that asks while the forward runs without this tap."""
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
        forward: number of the forward of the step that runs, 0 before the first.
        slot: where its request is in the forward that runs, None where it is not.
        missed: why modules cannot be offered in that; empty where they can.
    """

    def __init__(self, root: EngineRoot, engine: TappingEngine) -> None:
        super().__init__(root, root)
        # steps are told by the engine, not by a tap on the root
        self.stepping = None
        self.writes = PortionWrites()
        # programs see a portion's value, not the portion
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
        """See to it that a cache is shown what it was asked for.

        Raises:
            EngineError: the engine has compiled the model, whose modules are not called.
        """
        if self.engine.is_compiled:
            raise EngineError(compiled("what a cache keeps"))
        super().watch_for(places, machine)

    def offer(self, tap: Tap, phase: str, value: Any) -> Any:
        """Offer a portion to the machines that wait for it; return it.

        One machine that reads an output is what nearly all visits come to; to answer it here
        saves 3 of 12 µs.
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
            # an error is the block's, at the line that asked
            self.drive(machine, answer, error)
        finally:
            self._offer = outer
        return value

    def seen(self, machine: Machine, offer: Offer, port: str) -> Any:
        """Return what the request's programs see of the current offer.

        Raises:
            EngineError: part of it went by before it could be offered.
        """
        if self.missed and not isinstance(offer.tap.place, EnginePlace):
            raise EngineError(self.missed)
        return offer.value.seen(port)


class PortionWrites(Writes):
    """What is written goes into the portion that is offered, if it fits there."""

    def put(
        self,
        machine: Machine,
        offer: Offer,
        location: tuple[Place, str],
        seen: Any,
        new: Any,
        cut: OfferCut | None,
    ) -> None:
        """Replace what the request's programs see of a port."""
        offer.value.put(location[1], new)


def compiled(location: str) -> str:
    """Say why a location inside a compiled engine is refused."""
    return (
        f"{location} lies inside a model that the engine has compiled, where no value is offered; "
        "make the engine with VLLM(..., enforce_eager=True)"
    )


def operation(place: OperationPlace, is_compiled: bool, is_sharded: bool) -> str | None:
    """Say why an operation inside a forward is refused, None if it is served."""
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
