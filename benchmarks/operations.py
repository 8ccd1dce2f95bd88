"""What a tapped operation costs that no one waits for.

    make bench

A forward of twenty additions runs as it is, with all of them tapped, and with one tapped; the taps
are those of a run in which nobody asks for a value. Figures are from one run on one machine.
"""

from __future__ import annotations

import statistics

import torch
from parts import compare, machine
from rich.console import Console
from rich.table import Table
from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.runtime.driver import Driver
from nnsight_dsl.runtime.operations import Inside, OperationTap

COUNT = 20
ROUNDS = 3_000
TARGET = 0.3

names: dict[str, object] = {"nn": nn}
exec(
    "class Adding(nn.Module):\n    def forward(self, x):\n"
    + "        x = x + 1\n" * COUNT
    + "        return x\n",
    names,
)


def main() -> None:
    torch.set_num_threads(1)
    model = NNsight(names["Adding"]())  # type: ignore[operator]
    module = model._module
    bare = type(module).forward
    forms = {"as it is": bare.__get__(module)}
    for label, count in (("one tapped", 1), (f"{COUNT} tapped", COUNT)):
        driver = Driver(model)
        driver.is_tapping_ahead = True
        inside = Inside(model, driver)
        inside._has_all = False
        for i in range(count):
            place = model.source[f"add_{i}"]
            inside.add(OperationTap(place, driver))
        forms[label] = inside.tapped(bare.__get__(module))
    times = compare([lambda form=form: form(1) for form in forms.values()], ROUNDS)
    base = statistics.median(times[0])
    table = Table(title=f"a forward of {COUNT} additions, microseconds")
    for heading in ("form", "forward", "for each tapped operation"):
        table.add_column(heading, justify="left" if heading == "form" else "right")
    each = 0.0
    for (label, _), found in zip(forms.items(), times, strict=True):
        count = {"as it is": 0, "one tapped": 1}.get(label, COUNT)
        each = (statistics.median(found) - base) / count if count else 0.0
        table.add_row(label, f"{statistics.median(found):.2f}", f"+{each:.2f}" if count else "–")
    console = Console(width=100)
    console.print(table)
    verdict = "met" if each <= TARGET else "missed"
    console.print(f"{machine()}; target: at most {TARGET} for each ({verdict})")


if __name__ == "__main__":
    main()
