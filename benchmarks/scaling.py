"""Does a run cost more in a larger model, or with more machines?

One read in stacks of more and more modules, and more and more promptless invokes on one forward.
Bare forward and block take turns; what grows beside the bare forward is the block's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from nnsight_dsl import NNsight, install_import_hook

from .parts import Stack, compare
from .results import Figure, Row, Target, figure_of, median_figure

_QUESTION = "growth: added to the forward"


def rows(*, quick: bool) -> list[Row]:
    """Measure growth with modules and with machines."""
    name = f"{__package__}.scaling_blocks"
    with install_import_hook(name):
        blocks: Any = importlib.import_module(name)
    x = torch.randn(1, 32)
    found, added = [], {}
    with torch.no_grad():
        # a layer is three modules
        sizes = (12, 120, 1_200)
        for count in sizes:
            module = Stack(count // 3).eval()
            model = NNsight(module)
            bare, ours = compare(
                [lambda m=module: m(x), lambda m=model: blocks.one_read(m, x)], 60 if quick else 300
            )
            added[count] = [b - a for a, b in zip(bare, ours, strict=True)]
            bare_figure = median_figure(bare)
            figures = {"bare": bare_figure, "imported": median_figure(added[count])}
            if count == sizes[-1]:
                # of what the block adds to the larger forward, so much is new
                growth = _difference(added[count], added[sizes[0]])
                share = Figure(growth.value / bare_figure.value, growth.spread / bare_figure.value)
                figures["growth / bare"] = share
            targets = [Target("growth / bare", 0.10)] if count == sizes[-1] else []
            found.append(Row(_QUESTION, f"1 read in {count:,} modules", figures, targets=targets))
        module = Stack(12).eval()
        model = NNsight(module)
        for count in (1, 16, 256):
            bare, ours = compare(
                [lambda: module(x), lambda n=count: blocks.machines(model, x, n)],
                10 if quick else 50,
            )
            times = [b - a for a, b in zip(bare, ours, strict=True)]
            each = median_figure([one / count for one in times])
            figures = {
                "bare": median_figure(bare), "imported": median_figure(times), "each": each
            }  # fmt: skip
            found.append(Row(_QUESTION, f"{count} machines, one read each", figures))
    return found


def _difference(one: Sequence[float], other: Sequence[float]) -> Figure:
    import statistics

    def difference(turns: Sequence[int]) -> float:
        return statistics.median(one[i] for i in turns) - statistics.median(other[i] for i in turns)

    return figure_of(min(len(one), len(other)), difference)
