"""Values that no module computes: the result of a run, and the tokens of a generation one by one.

    model.generator.output              # the token ids that `generate` returns; can be written
    model.generator.streamer.output     # those that it hands to a streamer before each step

A generation hands its streamer the prompt before the first step, and then the token of each row
that a step has chosen. So they belong to the step that they go into: the prompt to step 0, the
token that step 0 has chosen to step 1, and the last one to a step which has no forward. A loop over
steps has a last round for it, if its block names the streamer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from nnsight_dsl.runtime.errors import NotCalledError, WriteError
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.kept_taps import Needs
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.values.rows import Cut, describe, narrow, widen
from nnsight_dsl.transforms.requests import OUTPUT, Request, target_of


class Run(Protocol):
    """The members of a run that these values depend on; `state.RunState` describes them."""

    machines: list[Machine]
    stream: Stream | None
    result: tuple[Any] | None
    is_called: bool
    is_partial: bool
    is_stepped: bool
    factor: int
    result_factor: int
    counts: Sequence[int]

    def tap_for(self, place: Place) -> Tap:
        """Return the tap at a place; put one there if there is none."""

    def park(self, machine: Machine, request: Request, place: Place) -> Any:
        """Let a machine wait at a place."""

    def drive(
        self,
        machine: Machine,
        answer: Any = None,
        error: BaseException | None = None,
        request: Request | None = None,
    ) -> None:
        """Resume a machine, after its request has been answered, if one is given."""

    def seen_result(self, machine: Machine) -> Any:
        """Return a machine's part of the run's result."""

    def replace_result(self, result: Any) -> None:
        """Let the run return another result."""


class ResultPlace(Place):
    """The place of a run's result, which a block can replace."""

    _module = None
    _parent = None

    def _used(self, machine: Machine) -> None:
        """Note a request for it: `nnsight_dsl.compat` warns."""


class StreamPlace(ResultPlace):
    """The place of the tokens that a generation hands to its streamer."""


class Stream:
    """What a generation has handed to its streamer, in a streamer for `generate`.

    Attributes:
        values: what it has handed over so far: that of step k is number k.
    """

    def __init__(self, driver: Run, user: Any) -> None:
        """Make a streamer that serves a run, and passes everything on to the user's, if any."""
        self._driver = driver
        self._user = user
        self.values: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, or the tokens of a step, and serve the machines that wait for them."""
        if self._user is not None:
            self._user.put(value)
        # on a CPU the ids are those that the generation goes on with
        self.values.append(value.clone())
        driver = self._driver
        due = [one for one in driver.machines if _waits(one) and one.step < len(self.values)]
        for machine in due:
            request = machine.pending
            if request is not None:
                driver.tap_for(target_of(request)).waiting.remove(machine)
                driver.drive(machine, request=request)

    def end(self) -> None:
        """Pass on that the generation has ended."""
        if self._user is not None:
            self._user.end()


def names_stream(machine: Machine) -> bool:
    """Return whether the block of a machine names the streamer, or waits for it."""
    needs = machine.needs
    return (isinstance(needs, Needs) and needs.streams) or _waits(machine)


def _waits(machine: Machine) -> bool:
    request = machine.pending
    return request is not None and isinstance(target_of(request), StreamPlace)


def streaming(driver: Run, generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return `generate` with a streamer, if a block of the run asks for what it is handed."""

    def generate_streamed(*args: Any, **kwargs: Any) -> Any:
        if any(map(names_stream, driver.machines)):
            stream = driver.stream = Stream(driver, kwargs.get("streamer"))
            kwargs["streamer"] = stream
        return generate(*args, **kwargs)

    return generate_streamed


def read(driver: Run, machine: Machine, request: Request) -> Any:
    """Answer a read of a place without a module."""
    place = request[1]
    if isinstance(place, StreamPlace):
        return _read_streamed(driver, machine, request)
    _note(machine, request, place)
    if driver.result is not None:
        return driver.seen_result(machine)
    return driver.park(machine, request, place)


def _read_streamed(driver: Run, machine: Machine, request: Request) -> Any:
    place = request[1]
    stream = driver.stream
    may_come = driver.is_partial or (driver.is_stepped and not driver.is_called)
    if machine.is_builder or (stream is None and may_come):
        return driver.park(machine, request, place)
    if stream is None:
        raise NotCalledError(f"{name_of(place, request[2])} was never computed: {place._absence()}")
    if machine.step >= len(stream.values):
        return driver.park(machine, request, place)
    value = stream.values[machine.step]
    if machine.rows is None:
        return value.clone()
    return narrow(value, Cut(machine.rows, driver.factor)).clone()


def write(driver: Run, machine: Machine, request: Request) -> Any:
    """Answer a write to a place without a module.

    Raises:
        WriteError: it cannot be written, or the value does not fit.
    """
    _, value, place, port = request
    location = name_of(place, port)
    if isinstance(place, StreamPlace):
        raise cannot_be_streamed(location)
    if not isinstance(place, ResultPlace) or port != OUTPUT:
        raise WriteError(f"{location} is the run's return value; it can be read, not written")
    _note(machine, request, place)
    if driver.result is None:
        return driver.park(machine, request, place)
    whole = driver.result[0]
    rows = machine.rows
    if rows is not None:
        value = widen(whole, value, Cut(rows, driver.factor, driver.result_factor))
    elif driver.counts and not _is_like(value, whole):
        raise WriteError(
            f"the value written to {location} is {describe(value)}, and invokes see their rows of "
            f"{describe(whole)}; write one like it"
        )
    driver.replace_result(value)
    return None


def cannot_be_streamed(location: str) -> WriteError:
    """Return the error for a write to the tokens of a step."""
    return WriteError(
        f"{location} is a copy of tokens that are chosen already; to have others chosen, write "
        "the logits: model.lm_head.output, or the output of the model's last module"
    )


def _note(machine: Machine, request: Request, place: Place) -> None:
    # a request that has waited is answered twice
    if isinstance(place, ResultPlace) and machine.pending is not request:
        place._used(machine)


def _is_like(value: Any, whole: Any) -> bool:
    if not isinstance(whole, torch.Tensor):
        return type(value) is type(whole)
    return isinstance(value, torch.Tensor) and value.shape[:1] == whole.shape[:1]
