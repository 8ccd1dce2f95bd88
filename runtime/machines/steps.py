"""Loops over steps: the steps that `tracer.iter[...]` selects, and a machine's position in them.

A *step* is one forward of the root module in a generation. In a run with a single root forward,
round k of a loop means the k-th visit to each location instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from nnsight_dsl.runtime.errors import LoopOver, NotRunningError
from nnsight_dsl.transforms import requests

from .machine import Machine, current_machine


@dataclass(frozen=True, slots=True)
class StepSpec:
    """Steps that a loop runs over.

    Attributes:
        key: an int, a slice, or an iterable of ints, as written between the brackets.
    """

    key: Any

    def __iter__(self) -> Iterator[int]:
        """Loop over the steps in code that was not lowered: a helper that a block calls."""
        machine = current_machine()
        if machine is None:
            raise NotRunningError(
                "steps can be looped over only while the model runs; write the loop inside "
                "'with model.generate(...):'"
            )
        steps = machine.request((requests.STEPS, self))
        steps.is_lowered = False
        try:
            while machine.request((requests.STEP, steps)):
                yield steps.value
        finally:
            steps.close()

    def __enter__(self) -> None:
        raise NotRunningError(
            "'with ... iter[...]' is a loop only in a block itself; write 'for step in "
            "tracer.iter[...]:' in a helper"
        )

    def __exit__(self, *error: object) -> None:
        """Nothing was entered."""

    def numbers(self) -> tuple[Iterator[int], bool]:
        """Return the numbers of the steps, and whether they go on without end.

        Raises:
            TypeError: the key is not an int, a slice or an iterable.
            ValueError: a number is negative, or the numbers do not grow.
        """
        key = self.key
        if isinstance(key, int) and not isinstance(key, bool):
            return _growing([key]), False
        if isinstance(key, slice):
            start = 0 if key.start is None else key.start
            stride = 1 if key.step is None else key.step
            if start < 0 or stride < 1 or (key.stop is not None and key.stop < 0):
                raise ValueError(
                    f"steps {key!r} count from the end or backwards; the number of steps is not "
                    "known before the generation ends, so count from its start"
                )
            if key.stop is None:
                return count(start, stride), True
            return iter(range(start, key.stop, stride)), False
        if isinstance(key, (list, tuple)):
            # all numbers are known, so a wrong one is reported at the loop's head
            return iter([*_growing(key)]), False
        if isinstance(key, Iterable):
            return _growing(key), False
        raise TypeError(
            f"tracer.iter[{key!r}] is not a step; write an int, a slice or a list of ints"
        )


def _growing(numbers: Iterable[Any]) -> Iterator[int]:
    last = -1
    for number in numbers:
        if isinstance(number, int) and number < 0:
            raise ValueError(
                f"step {number} counts from the end, and the number of steps is not known before "
                "the generation ends; count from its start, from 0"
            )
        if not isinstance(number, int) or number <= last:
            raise ValueError(
                f"step {number!r} does not come after step {last}; steps are ints that count from "
                "0, in the order in which the generation takes them"
            )
        last = number
        yield number


class Steps:
    """One loop of one machine over steps.

    Attributes:
        over: the exception that the driver raises in a round to end the loop.
        is_open: True if the steps have no end, as in `tracer.iter[:]`.
        is_lowered: True in lowered code, which catches `over`; `StepSpec.__iter__` clears it.
        is_over: True once `lateness` has ended the loop by `over`; it has no further rounds.
        next_step: the step that the next round waits for.
        value: the step of the current round.
    """

    __slots__ = (
        "_before",
        "_machine",
        "_numbers",
        "is_lowered",
        "is_open",
        "is_over",
        "next_step",
        "value",
    )
    over = LoopOver

    def __init__(self, spec: StepSpec, machine: Machine) -> None:
        self._numbers, self.is_open = spec.numbers()
        self._machine = machine
        self._before = machine.step
        self.is_lowered = True
        self.is_over = False
        self.next_step: int | None = None
        self.value: Any = None
        machine.loops = [*machine.loops, self]

    def look_ahead(self) -> int | None:
        """Return the step that the next round waits for, None after the last one."""
        self.next_step = next(self._numbers, None)
        return self.next_step

    def begin(self) -> None:
        """Pin the machine's requests to the step that has begun."""
        self.value = self._machine.step = self.next_step or 0

    def close(self) -> None:
        """Put the machine back to the step at which it entered the loop."""
        self._machine.step = self._before
        if self in self._machine.loops:
            # and those inside it, in case one of them was not closed
            self._machine.loops = self._machine.loops[: self._machine.loops.index(self)]


class PlainSteps:
    """A loop over something that only looks like steps: any other iterable."""

    __slots__ = ("iterator", "value")
    over = LoopOver

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.iterator = iter(iterable)
        self.value: Any = None

    def close(self) -> None:
        """Leave the loop."""


def steps_of(spec: Any, machine: Machine) -> Steps | PlainSteps:
    """Return the loop that a machine enters: over steps, or over any other iterable."""
    return Steps(spec, machine) if isinstance(spec, StepSpec) else PlainSteps(spec)
