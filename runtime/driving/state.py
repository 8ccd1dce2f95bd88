"""The state of a run, which the answers to requests read and change.

Defaults are defined on the class, so that making a run is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.steps import Steps
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.values.offer import Offer
from nnsight_dsl.runtime.values.offers import Writes
from nnsight_dsl.runtime.values.rows import Rows
from nnsight_dsl.runtime.values.views import OfferCut
from nnsight_dsl.transforms.requests import Port, Request

from .log import Log
from .loop import Loop
from .results import Stream


class RunState(Loop):
    """One run of one model.

    Attributes:
        root: place of the root module.
        machines: the machines in the order of their definition.
        stepping: in a generation, the place whose calls are steps: the root, or the model inside
            it that it wraps; None in other runs.
        is_stepped: True in a generation.
        step: the step that runs, -1 before the first.
        most_visits: number of the last visit that has begun, over all modules, counted from 1.
        factor: rows of the batch per row of the input, other than 1 under beam search.
        result_factor: rows of the result per row of the input; may be fewer than the beams.
        counts: rows of each input in a batch of several.
        writes: the writes of the machines.
        apart: rows that have skipped the call that runs, and are offered nothing inside of it.
        shared: values of names that other invokes wait for, by name and order of the binder.
        log: the values that were served, None unless the caller asked for a log.
        result: the return value of the model, in a tuple; None before there is one.
        stream: the streamer of a generation whose blocks ask for its tokens.
        is_called: whether the model has been called, so that modules may have been visited.
        is_partial: True in a dry run of the first step of a generation.
        is_session: True for a block of several runs, which runs no model itself.
        is_stopped: True once a block has called `tracer.stop()`.
        stops_all: True if that ends the run for all blocks; `nnsight_dsl.compat` sets it.
        warns_of_open: True if the end of an open loop over steps is told; `compat` sets it.
        stops_itself: True in a run that may end early without that (see `early_stop`).
        is_common: True if no visit does more than offer its output: there are no steps, no loops
            over visits and no backward passes. A generation, the first such loop and the first
            pass clear it for the rest of the run.
        is_direct: True if a machine that sees all rows is handed values unchanged; False in a run
            that logs values or hands out copies.
        is_in_backward: True during a backward pass, whose visits repeat those of the forward.
        has_met: True once a machine has reached a barrier; only then are barriers checked.
        has_ended: whether the model has returned.
        own_calls: number of module calls by blocks that are in progress.
        step_waiters: machines whose loop waits for a step.
        visit_waiters: machines whose loop waits for a visit.
    """

    root: Place
    machines: list[Machine]
    stepping: Place | None
    is_stepped: bool
    step: int
    most_visits = 0
    factor: int
    result_factor = 1
    counts: Sequence[int] = ()
    writes: Writes
    apart: Sequence[Rows] = ()
    shared: Mapping[str, Mapping[int, Any]] = MappingProxyType({})
    log: Log | None = None
    result: tuple[Any] | None = None
    stream: Stream | None = None
    is_called = False
    is_partial = False
    is_session = False
    is_stopped = False
    stops_all = False
    warns_of_open = False
    stops_itself = False
    is_common: bool
    is_direct = True
    is_in_backward = False
    has_met = False
    has_ended: bool
    own_calls: int
    step_waiters: Sequence[tuple[Machine, Steps]] = ()
    visit_waiters: Sequence[tuple[Machine, Steps]] = ()

    def tap_for(self, place: Place) -> Tap:
        """Return the tap at a place; put one there if there is none."""
        raise NotImplementedError

    def offered(self, machine: Machine, request: Request) -> Offer | None:
        """Return the current offer if it is the one a request is for."""
        raise NotImplementedError

    def seen(self, machine: Machine, offer: Offer, port: Port) -> Any:
        """Return a machine's part of the current offer."""
        raise NotImplementedError

    def cut(self, machine: Machine, offer: Offer) -> OfferCut | None:
        """Return how an offer is cut for a machine, None if it sees all of it."""
        raise NotImplementedError

    def park(self, machine: Machine, request: Request, place: Place) -> Any:
        """Let a machine wait at a place, unless the value can no longer come."""
        raise NotImplementedError

    def seen_result(self, machine: Machine) -> Any:
        """Return a machine's part of the run's result."""
        raise NotImplementedError

    def replace_result(self, result: Any) -> None:
        """Let the run return another result."""
        raise NotImplementedError

    def may_stop(self) -> bool:
        """Return whether the model need not go on."""
        raise NotImplementedError

    def warn_of_missing(self, machine: Machine, steps: Steps) -> None:
        """Warn that a bounded loop waited for a step that did not come."""
        raise NotImplementedError
