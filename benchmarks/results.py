"""What a benchmark finds: rows of medians, ratios, targets and verdicts.

A figure is the median over the turns of a run. Its spread is half of the range that holds nine in
ten of the medians of turns drawn again from the same run (a bootstrap, from a fixed seed). A
target is missed for certain where it is missed by more than that.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_DRAWS = 200


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and how far another run like this one would be off."""

    value: float
    spread: float = 0.0

    def __str__(self) -> str:
        digits = 0 if abs(self.value) >= 100 else 1 if abs(self.value) >= 10 else 2
        text = f"{self.value:,.{digits}f}"
        return f"{text} ± {self.spread:,.{digits}f}" if self.spread else text


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to be at most.

    Attributes:
        figure: name of the figure among those of its row.
        at_most: the bound.
    """

    figure: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        question: what is asked; rows of one question stand together.
        name: what was measured.
        figures: by name, as "imported" or "imported / hooks".
        unit: of the figures that are no ratios.
        targets: bounds for some of the figures.
        reasons: by name, why there is no figure.
    """

    question: str
    name: str
    figures: Mapping[str, Figure]
    unit: str = "µs"
    targets: Sequence[Target] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    def verdict(self, target: Target) -> str:
        """Say whether a target is met: "met", "missed", or why there is nothing to compare."""
        figure = self.figures.get(target.figure)
        if figure is None:
            return "not measured"
        return "met" if figure.value <= target.at_most else "missed"

    def is_missed_for_certain(self) -> bool:
        """Tell whether a target is missed by more than the spread of the run."""
        found = [(self.figures.get(one.figure), one.at_most) for one in self.targets]
        return any(
            figure is not None and figure.value - figure.spread > at_most
            for figure, at_most in found
        )


def figure_of(turns: int, value: Callable[[Sequence[int]], float], seed: int = 0) -> Figure:
    """Make a figure of a function of turns.

    Args:
        turns: how many turns there were.
        value: returns the figure over some of the turns, given by number, repeated or not.
        seed: of the draws.
    """
    draw = random.Random(seed)
    drawn = sorted(value(draw.choices(range(turns), k=turns)) for _ in range(_DRAWS))
    low, high = drawn[_DRAWS // 20], drawn[-_DRAWS // 20 - 1]
    return Figure(value(range(turns)), (high - low) / 2)


def median_figure(times: Sequence[float]) -> Figure:
    """Make a figure of the median of some times."""
    return figure_of(len(times), lambda turns: statistics.median(times[i] for i in turns))


def ratio_figure(one: Sequence[float], other: Sequence[float]) -> Figure:
    """Make a figure of the ratio of two medians, of times that were taken in turns."""

    def ratio(turns: Sequence[int]) -> float:
        below = statistics.median(other[i] for i in turns)
        return statistics.median(one[i] for i in turns) / below if below else float("inf")

    return figure_of(min(len(one), len(other)), ratio)
