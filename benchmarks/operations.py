"""What does a tapped operation cost that no one waits for?

A forward of twenty additions runs as it is, with all of them tapped, and with one tapped; the taps
are those of a run in which nobody asks for a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.tapping.operations import Inside, OperationTap

from .parts import compare
from .results import Figure, Row, Target, median_figure

COUNT = 20
TARGET = 0.3

_names: dict[str, Any] = {"nn": nn}
exec(
    "class Adding(nn.Module):\n    def forward(self, x):\n"
    + "        x = x + 1\n" * COUNT
    + "        return x\n",
    _names,
)


def rows(*, quick: bool) -> list[Row]:
    """Measure the forward in each form."""
    model = NNsight(_names["Adding"]())
    module = model._module
    bare = type(module).forward
    forms: dict[str, Callable[[int], object]] = {"as it is": bare.__get__(module)}
    for label, count in (("one tapped", 1), ("all tapped", COUNT)):
        driver = Driver(model)
        driver.is_tapping_ahead = True
        inside = Inside(model, driver)
        inside._has_all = False
        for i in range(count):
            inside.add(OperationTap(model.source[f"add_{i}"], driver))
        forms[label] = inside.tapped(bare.__get__(module))
    times = compare([lambda form=form: form(1) for form in forms.values()], 500 if quick else 3_000)
    figures = {name: median_figure(own) for name, own in zip(forms, times, strict=True)}
    each = median_figure([(b - a) / COUNT for a, b in zip(times[0], times[2], strict=True)])
    figures["each of all"] = Figure(each.value, each.spread)
    return [
        Row(
            "operations: tapped, and nobody waits",
            f"a forward of {COUNT} additions",
            figures,
            targets=[Target("each of all", TARGET)],
        )
    ]
