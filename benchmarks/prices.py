"""What does each part of a run cost?

Where a target is missed, this says what of it goes where. The parts are measured on modules that
compute nothing, so that they are all there is: blocks that differ by one part, in turns, and the
objects of a run made by themselves. Beside them stands what hooks by hand cost there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import nn

from nnsight_dsl import NNsight, install_import_hook
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.kept_taps import Fixtures
from nnsight_dsl.tracing.saving import INJECTED

from .parts import compare
from .results import Row, median_figure

_QUESTION = "prices: what each part of a run costs"
_COUNT = 24
_REPEATS = 100


class Layers(nn.Module):
    """Calls modules that compute nothing, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(_COUNT))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def rows(*, quick: bool) -> list[Row]:
    """Measure the parts."""
    name = f"{__package__}.prices_blocks"
    if name not in sys.modules:
        with install_import_hook(name):
            importlib.import_module(name)
    blocks: Any = sys.modules[name]
    module, x = Layers().eval(), torch.randn(1, 32)
    model = NNsight(module)
    rounds = 100 if quick else 500
    with torch.no_grad():
        whole = _of_blocks(blocks, module, model, x, rounds)
        parts = _of_objects(blocks, model, x, rounds // 5)
    return [
        Row(_QUESTION, name, {"each": median_figure(times)})
        for name, times in (whole | parts).items()
    ]


def _of_blocks(
    blocks: Any, module: nn.Module, model: NNsight, x: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    found: list[torch.Tensor] = []

    def hooked(count: int, hook: Callable[..., Any]) -> None:
        handles = [one.register_forward_hook(hook) for one in list(module.layers)[:count]]
        try:
            module(x)
        finally:
            for handle in handles:
                handle.remove()
        found.clear()

    def keep(_module: object, _args: object, output: torch.Tensor) -> None:
        found.append(output)

    cases: list[Callable[[], object]] = [
        lambda: module(x),
        lambda: hooked(_COUNT, keep),
        *(
            partial(getattr(blocks, name), model, x)
            for name in ("nothing", "led_to", "first", "read", "saved", "written")
        ),
    ]
    bare, hooks, nothing, led_to, first, read, saved, written = compare(cases, rounds, 20)

    def each(more: list[float], less: list[float], count: int) -> list[float]:
        return [(a - b) / count for a, b in zip(more, less, strict=True)]

    return {
        "a hook by hand, with its removal": each(hooks, bare, _COUNT),
        "an empty block": each(nothing, bare, 1),
        "the way to a module, by attribute and number": each(led_to, nothing, _COUNT),
        "a read in a loop, with all that is its own": each(read, first, _COUNT - 1),
        "the first read of a block, beyond that": [
            a - b - (c - a) / (_COUNT - 1) for a, b, c in zip(first, nothing, read, strict=True)
        ],
        ".save() of a tensor": each(saved, read, _COUNT),
        "a write of what was read": each(written, read, _COUNT),
    }


def _of_objects(blocks: Any, model: NNsight, x: torch.Tensor, rounds: int) -> dict[str, Any]:
    fits = {program.name: (program, fit) for program, fit in model._fits.items()}
    (program, fit), (empty, empty_fit) = fits["read"], fits["nothing"]
    names, thread = {"model": model, "x": x}, get_ident()
    tracer = model.trace(x)
    fixtures = Fixtures(model.layers)

    def turn() -> None:
        with model._family.lock:
            pass

    driver = empty_fit.new_driver(model)

    def machine() -> Machine:
        running = empty_fit.function()
        return Machine(empty, vars(blocks), tracer._saved, running, INJECTED, True)

    def run() -> None:
        driver.run_alone(machine(), thread, tuple, (), {})

    def tapped() -> None:
        fixtures.put(driver)
        fixtures.remove()

    cases: dict[str, tuple[Callable[[], object], int]] = {
        "of an empty block: model.trace(x)": (lambda: model.trace(x), 1),
        "of an empty block: the turn among runs of the model": (turn, 1),
        f"of a block: whether the names and {_COUNT} modules are as they were": (
            lambda: fit.holds(program, vars(blocks), names),
            1,
        ),
        "of an empty block: a machine": (machine, 1),
        "of an empty block: a machine, and its run": (run, 1),
        "of a read: a tap put there and taken off": (tapped, _COUNT),
    }

    def repeated(function: Callable[[], object]) -> Callable[[], None]:
        def repeat() -> None:
            for _ in range(_REPEATS):
                function()

        return repeat

    times = compare([repeated(function) for function, _ in cases.values()], rounds, 3)
    return {
        name: [one / _REPEATS / count for one in column]
        for (name, (_, count)), column in zip(cases.items(), times, strict=True)
    }
