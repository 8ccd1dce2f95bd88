"""Lateness: which requests can no longer be met, and the error for each.

No machine waits for ever. A request is too late if its value has passed, or if the module around
its place has returned; the value of a request that is left at the end of the run never came.
"""

from __future__ import annotations

from typing import Protocol

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.transforms.requests import INPUTS, Request, phase_of, target_of

from . import messages


class Run(messages.Run, Protocol):
    """The members of a run that lateness depends on.

    Attributes:
        warns_of_open: True if the end of an open loop over steps is told.
    """

    warns_of_open: bool

    def tap_at(self, place: Place) -> Tap | None:
        """Return the tap at a place, None if there is none."""


def too_late(run: Run, machine: Machine, request: Request, tap: Tap) -> BaseException | None:
    """Return the error for a request whose value can no longer come, None if it can."""
    if tap.place._module is None:
        return None
    step = machine.step
    if run.is_stepped and run.has_ended and _is_in_last_round(run, machine):
        return _end_of_loop(run, machine, request)
    before_call = phase_of(request) == INPUTS
    visit = tap.begun_step if before_call else tap.done_step
    if visit >= step or (run.is_stepped and run.has_ended):
        return messages.passed(run, machine, request, tap)
    if run.step > step and not tap.is_beside:
        return messages.not_in_step(run, machine, request)
    if run.has_ended:
        return never_came(run, machine, request)
    place: Place | None = target_of(request)._parent
    while place is not None:
        above = run.tap_at(place)
        if above is not None and _is_over(run, above, step):
            return messages.parent_passed(machine, request, place)
        place = place._parent
    return None


def never_came(run: Run, machine: Machine, request: Request) -> BaseException:
    """Return the exception for a machine whose value never came.

    In a run with one forward of the root, round k of a loop is the k-th visit to each
    location. If one location has fewer visits than the others, the loop ends there.
    """
    loop = machine.loops[-1] if machine.loops else None
    if loop is None or not loop.is_lowered or run.is_stepped or machine.step == 0:
        return messages.never_came(run, machine, request)
    place = target_of(request) if phase_of(request) is not None else None
    if not isinstance(place, Place) or not 0 < run.tap_for(place).begun <= machine.step:
        return messages.never_came(run, machine, request)
    if run.warns_of_open or not loop.is_open:
        messages.warn_of_missing_visits(machine, request, run.tap_for(place).begun)
    loop.is_over = True
    return loop.over()


def _is_in_last_round(run: Run, machine: Machine) -> bool:
    """Return whether a machine is in a round of a loop that has tokens, but no forward."""
    loop = machine.loops[-1] if machine.loops else None
    return loop is not None and loop.is_lowered and loop.value == machine.step > run.step


def _end_of_loop(run: Run, machine: Machine, request: Request) -> BaseException:
    """Return what ends a loop that waits for a value of a step which did not come."""
    loop = machine.loops[-1]
    if run.warns_of_open or not loop.is_open:
        messages.warn_of_missing_values(machine, request, run.step + 1)
    loop.is_over = True
    return loop.over()


def _is_over(run: Run, tap: Tap, step: int) -> bool:
    """Return whether a module has returned for the last time, so no value below it can come."""
    if tap.done_step < step:
        return False
    if tap.begun != tap.done or tap.begun > step + 1:
        # it is running, as a recursive module may be, or has been called again
        return False
    module = tap.place._module
    places = run.root._module.named_modules(remove_duplicate=False)
    return sum(one is module for _, one in places) < 2
