"""The interfaces between a run and its taps.

A tap reports each visit to the run, and offers it each value that a machine waits for. `Offering`
lists the members of the run that it uses; `driving.driver.Driver` has them, and so does a vLLM
engine for its own taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import nn

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.record import Record
from nnsight_dsl.transforms.requests import Phase


class Watcher(Protocol):
    """An object that is shown every visit to a tapped module."""

    def record(self, place: Place, inputs: Any, output: Any, factor: int) -> None:
        """See the arguments and the output of a visit, after the edits of all blocks."""

    def watches(self, place: Place) -> bool:
        """Return whether a module has to be called even if its parent can run without it."""


class Looking(Protocol):
    """The taps on the operations inside a module's forward."""

    def is_awaited(self) -> bool:
        """Return whether a machine waits for one of the operations."""

    def called(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the call of a module, so that its forward is tapped while it lasts."""

    def finish(self) -> None:
        """Release all values."""


class Offering(Protocol):
    """The members of a run that its taps use.

    Attributes:
        root: place of the root module.
        thread: identity of the thread that the run belongs to; in others a tap does nothing.
        record: the changes that the run has made outside of itself.
        is_stepped: True in a generation.
        step: the step that runs, -1 before the first.
        factor: rows of the batch per row of the input, other than 1 under beam search.
        has_grad: whether grad mode was on when the current forward of the root began.
        is_usual: True unless jit traces, which calls modules in another way; set at the start.
        is_common: True if no visit does more than offer its output (see `driving.state`).
        is_in_backward: True during a backward pass, whose visits repeat those of the forward.
        is_read_only: True while the value on offer must not be replaced by a copy; an operation's
            tap sets it for an offer under saved-tensor hooks.
        is_tapping_ahead: True while the driver puts taps before it calls the model.
        visit_waiters: machines whose loop waits for the next visit of any module.
        watchers: objects that are shown every visit.
    """

    root: Place
    thread: int
    record: Record
    is_stepped: bool
    step: int
    factor: int
    has_grad: bool
    is_usual: bool
    is_common: bool
    is_in_backward: bool
    is_read_only: bool
    is_tapping_ahead: bool
    watchers: list[Watcher]

    @property
    def visit_waiters(self) -> Sequence[tuple[Machine, Any]]:
        """See above."""

    def begin_step(self) -> None:
        """Note that a call of the module whose calls are steps begins."""

    def begin_visit(self, index: int) -> None:
        """Note that a module is called for the `index`-th time."""

    def offer(self, tap: Any, phase: Phase, value: Any) -> Any:
        """Offer a value; return its replacement, or the value itself."""

    def serve(self, machine: Machine, answer: Any, at: Any) -> Any:
        """Answer the only machine that waits at a tap with the output."""

    def watch(self, tap: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Show the watchers a visit that is over."""

    def fail_waiting(self, tap: Any, error: Exception) -> None:
        """Raise an error in all machines that wait at a tap."""

    def is_offering_inputs(self, tap: Any) -> bool:
        """Return whether the arguments of a place are on offer, so its call is still to come."""

    def places(self) -> Iterator[Place]:
        """Iterate over the modules of the model."""

    def tap_for(self, place: Place) -> Any:
        """Return the tap at a place; put one there if there is none."""


class Visited(Protocol):
    """The members of a tap that the class of a tapped module uses.

    Attributes:
        driver: the run.
        looks_inside: True for the tap of a run, which may look at a module's parts; False for a
            tap of an engine.
        is_common: True if a visit can do nothing but serve machines that wait for the output.
        is_entered: True from the beginning of a visit until its call reaches `_call_impl`; after
            that, another call of the module is another visit.
        index: occurrence of the current visit; None if no request can mean it.
        begun: visits that have begun in this run.
        done: visits that have ended.
        begun_step: last occurrence that has begun.
        done_step: last occurrence that has ended.
        waiting: machines whose pending request is for this place.
    """

    driver: Any
    looks_inside: bool
    is_common: bool
    is_entered: bool
    index: int | None
    begun: int
    done: int
    begun_step: int
    done_step: int
    waiting: list[Machine]
    inside: Looking | None

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module."""

    def is_awaited(self) -> bool:
        """Return whether a machine waits here or inside, or a watcher wants to see the visit."""
