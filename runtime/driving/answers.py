"""The answer to each kind of request.

An answer is the value that the machine is resumed with, or `PARKED`: then the machine waits, and
the driver resumes it later. An error raised here is raised in the machine, at the user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from nnsight_dsl.runtime.errors import InvokeError, OutOfOrderError, RunAborted
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.barriers import Barrier
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.steps import Steps, steps_of
from nnsight_dsl.runtime.values.elements import with_element
from nnsight_dsl.runtime.values.offer import Offer
from nnsight_dsl.runtime.values.offers import Skip
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import OUTPUT, Request

from . import messages, results
from .gradients import Backward
from .loop import PARKED
from .state import RunState


def _read(driver: RunState, machine: Machine, request: Request) -> Any:
    _, place, port = request
    if place._module is None:
        return results.read(driver, machine, request)
    offer = driver.offered(machine, request)
    if offer is None:
        return driver.park(machine, request, place)
    seen = driver.seen(machine, offer, port)
    if driver.log is not None:
        driver.log.add(name_of(place, port), machine.step, request[0], machine.line, seen)
    if machine.program.first_items and port == OUTPUT and isinstance(seen, torch.Tensor):
        messages.warn_of_first_row(machine, place)
    return seen


def _write(driver: RunState, machine: Machine, request: Request) -> Any:
    _, value, place, port = request
    if place._module is None:
        return results.write(driver, machine, request)
    offer = driver.offered(machine, request)
    if offer is None:
        return driver.park(machine, request, place)
    seen = driver.seen(machine, offer, port)
    _put(driver, machine, offer, (place, port), seen, value)
    return None


def _element(driver: RunState, machine: Machine, request: Request) -> Any:
    _, value, container, place, port, *path = request
    if isinstance(place, results.StreamPlace):
        raise results.cannot_be_streamed(name_of(place, port))
    new = machine.in_its_state(with_element, container, path, value)
    if place._module is None:
        return None
    offer = driver.offered(machine, request)
    if offer is None:
        # the container was read from an offer that is over, as when its index waited
        raise messages.element_passed(request)
    _put(driver, machine, offer, (place, port), container, new)
    return None


def _put(
    driver: RunState,
    machine: Machine,
    offer: Offer,
    location: tuple[Place, str],
    seen: Any,
    new: Any,
) -> None:
    if driver.log is not None:
        driver.log.add(name_of(*location), machine.step, requests.WRITE, machine.line, new)
    cut = driver.cut(machine, offer)
    driver.writes.put(machine, offer, location, seen, new, cut)


def _skip(driver: RunState, machine: Machine, request: Request) -> Any:
    _, place, value = request
    offer = driver.offered(machine, request)
    if offer is None:
        return driver.park(machine, request, place)
    program = machine.program
    skip = Skip(value, machine.rows, program.filename, machine.line, program.name)
    offer.tap.skips = [*offer.tap.skips, skip]
    return None


def _steps(driver: RunState, machine: Machine, request: Request) -> Any:
    return steps_of(request[1], machine)


def _step(driver: RunState, machine: Machine, request: Request) -> Any:
    steps: Steps = request[1]
    if machine.is_builder:
        raise messages.steps_in_builder()
    number = steps.look_ahead()
    if number is None or steps.is_over:
        return False
    if driver.has_ended:
        driver.warn_of_missing(machine, steps)
        return False
    reached = driver.step if driver.is_stepped else max(driver.most_visits - 1, 0)
    if driver.is_stepped and reached > number:
        raise OutOfOrderError(
            f"step {number} is over, the generation is at step {reached}; enter the loop "
            "before its first step, or begin it later"
        )
    if reached == number or (not driver.is_stepped and reached >= number):
        steps.begin()
        return True
    machine.wait(request)
    if driver.is_stepped:
        driver.step_waiters = [*driver.step_waiters, (machine, steps)]
    else:
        driver.visit_waiters = [*driver.visit_waiters, (machine, steps)]
    driver.is_common = False
    if driver.stepping is not None:
        driver.tap_for(driver.stepping)
    return PARKED


def _block(driver: RunState, machine: Machine, request: Request) -> Any:
    _, target, number = request
    if not machine.is_builder:
        raise messages.nested_invoke()
    add = getattr(target, "_add_to_run", None)
    if add is None:
        raise InvokeError(
            f"{target!r} opens no invoke; write 'with tracer.invoke(...):' with the tracer of "
            "this trace"
        )
    program = machine.program.children[number]
    frame = machine.running.gi_frame
    add(program, machine.user_globals, {**frame.f_locals} if frame else {})
    return {}


def _backward(driver: RunState, machine: Machine, request: Request) -> Any:
    _, number, loss, (args, kwargs) = request
    if len(args) < 2 and "retain_graph" not in kwargs and _has_other_backward(driver, machine):
        # a batch has one graph, and this block cannot know that others go back through it
        kwargs = {**kwargs, "retain_graph": True}
    backward = Backward(loss, args, kwargs)
    inner = machine.inner(number)
    inner.leaves_all = True
    # a checkpoint's recomputation is not a visit
    driver.is_common = False
    driver.is_in_backward, outer = True, driver.is_in_backward
    try:
        backward.run(inner)
    finally:
        driver.is_in_backward = outer
    if backward.failure is not None:
        machine.keep_of_failed(inner.names)
        raise backward.failure
    return inner.names


def _has_other_backward(driver: RunState, machine: Machine) -> bool:
    """Return whether another block of this run may go back through the graph later."""
    return any(
        other is not machine
        and not other.is_done
        and any(program.kind == "backward" for program in other.program.all_programs())
        for other in driver.machines
    )


def _bind(driver: RunState, machine: Machine, request: Request) -> Any:
    _, name, value = request
    told = {**driver.shared.get(name, {}), machine.order: value}
    driver.shared = {**driver.shared, name: told}
    for other in driver.machines:
        waits = other.pending
        is_waiting = waits is not None and waits[:2] == (requests.NAME, name)
        if is_waiting and machine.order < other.order:
            other.wake()
            driver.ready = [*driver.ready, (other, value)]
    if not driver.ready:
        return None
    driver.ready = [*driver.ready, (machine, None)]
    return PARKED


def _name(driver: RunState, machine: Machine, request: Request) -> Any:
    name = request[1]
    told = driver.shared.get(name, {})
    earlier = [order for order in told if order < machine.order]
    if earlier:
        return told[max(earlier)]
    if name in machine.program.waits_for and any(
        other.order < machine.order and not other.is_done and name in other.program.bound
        for other in driver.machines
    ):
        machine.wait(request)
        return PARKED
    if name in machine.program.waits_for and not machine.has_outer(name):
        raise messages.never_bound(name)
    return machine.outer_value(name)


def _meet(driver: RunState, machine: Machine, request: Request) -> Any:
    barrier: Barrier = request[1]
    driver.has_met = True
    if machine.is_builder:
        raise messages.barrier_in_builder()
    if sum(not one.is_done for one in driver.machines) < barrier.participants:
        raise messages.barrier_without_enough(driver, barrier, here=1)
    barrier.arrived.append(machine)
    machine.wait(request)
    if len(barrier.arrived) >= barrier.participants:
        for other in barrier.arrived:
            other.wake()
            driver.ready = [*driver.ready, (other, None)]
        barrier.arrived = []
    return PARKED


def _stop(driver: RunState, machine: Machine, request: Request) -> Any:
    if machine.is_builder:
        raise messages.stop_in_builder()
    driver.is_stopped = True
    return _end(driver, machine, request)


def _end(driver: RunState, machine: Machine, request: Request) -> Any:
    if len(request) > 1:
        machine.result = request[1]
    machine.finish(is_stopped=request[0] == requests.STOP)
    if driver.has_met:
        _check_barriers(driver)
    is_over = (driver.is_stopped or driver.stops_itself) and driver.may_stop()
    if is_over and not driver.has_ended and not driver.ready:
        raise RunAborted
    return PARKED


def _check_barriers(driver: RunState) -> None:
    """Raise an error in each machine at a barrier that too few others can still reach."""
    for other in driver.machines:
        waits = other.pending
        if waits is None or waits[0] != requests.MEET:
            continue
        barrier: Barrier = waits[1]
        if sum(not one.is_done for one in driver.machines) < barrier.participants:
            error = messages.barrier_without_enough(driver, barrier, here=0)
            barrier.arrived.remove(other)
            driver.drive(other, error=error)


def _call(driver: RunState, machine: Machine, request: Request) -> Any:
    _, place, args, kwargs = request
    driver.tap_for(place)
    driver.own_calls += 1
    try:
        return place._module(*args, **kwargs)
    finally:
        driver.own_calls -= 1


def open_run(machine: Machine, request: Request) -> Any:
    """Run a trace inside of a block: in a session, or of another model."""
    _, number, target = request
    frame = machine.running.gi_frame
    names = {} if frame is None else {**frame.f_locals}
    program = machine.program.children[number]
    target._outer_now = machine.outer_now
    left, failure = target._run_inside(program, machine.user_globals, names, machine.saved)
    if failure is not None:
        machine.keep_of_failed(left)
        raise failure
    return left


ANSWERS: Mapping[str, Callable[[RunState, Machine, Request], Any]] = {
    requests.READ: _read,
    requests.WRITE: _write,
    requests.ELEMENT: _element,
    requests.SKIP: _skip,
    requests.STEPS: _steps,
    requests.STEP: _step,
    requests.BLOCK: _block,
    requests.BACKWARD: _backward,
    requests.BIND: _bind,
    requests.NAME: _name,
    requests.MEET: _meet,
    requests.STOP: _stop,
    requests.END: _end,
    requests.CALL: _call,
}
