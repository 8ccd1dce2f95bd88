"""The log of served values, which costs nothing in a run without one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nnsight_dsl.runtime.values.rows import describe


@dataclass(frozen=True, slots=True)
class Served:
    """One value that was served to a block.

    Attributes:
        location: where it was served, as `transformer.h.0.output`.
        step: step, or occurrence in a run with one forward.
        verb: `"read"`, `"write"` or `"skip"`.
        line: line of the user's file that asked.
        value: shape, dtype and device of a tensor, the type of anything else.
        seconds: time since the log began.
    """

    location: str
    step: int
    verb: str
    line: int
    value: str
    seconds: float


class Log:
    """The values that a run has served, in order."""

    def __init__(self) -> None:
        self.entries: list[Served] = []
        self._begin = time.perf_counter()

    def add(self, location: str, step: int, verb: str, line: int, value: Any) -> None:
        """Note a value; only its description is kept."""
        seconds = time.perf_counter() - self._begin
        self.entries.append(Served(location, step, verb, line, describe(value), seconds))
