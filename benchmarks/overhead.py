"""What a block costs, beside hand-written hooks that do the same.

    make bench

Each case runs in turns with the bare forward and with hand-written PyTorch hooks (A B C A B C),
so that a machine whose speed drifts does not favour one of them. Printed are the medians of what
each adds to the bare forward, and the ratio of ours to the hooks. Figures are from one run on one
machine: compare the ratios, not the microseconds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from parts import LAYERS, Stack, compare, machine
from rich.console import Console
from rich.table import Table
from torch import nn

from nnsight_dsl import NNsight


class Hooks:
    """The same by hand: hooks registered for one forward, and removed after it."""

    def __init__(self, module: nn.Module, value: torch.Tensor) -> None:
        self._module = module
        self._value = value

    def empty(self) -> None:
        self._module(self._value)

    def reads(self, count: int) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        def keep(module: nn.Module, args: object, output: torch.Tensor) -> None:
            found.append(output)

        handles = [layer.register_forward_hook(keep) for layer in list(self._module.layers)[:count]]
        try:
            self._module(self._value)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def edits(self) -> None:
        def double(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            return output * 2

        handles = [layer.register_forward_hook(double) for layer in self._module.layers]
        try:
            self._module(self._value)
        finally:
            for handle in handles:
                handle.remove()


class Blocks:
    """The same in blocks."""

    def __init__(self, model: NNsight, value: torch.Tensor) -> None:
        self._model = model
        self._value = value

    def empty(self) -> None:
        with self._model.trace(self._value):
            pass

    def one_read(self) -> torch.Tensor:
        model = self._model
        with model.trace(self._value):
            hidden = model.layers[0].output.save()
        return hidden

    def reads(self) -> list[torch.Tensor]:
        model = self._model
        with model.trace(self._value):
            h0 = model.layers[0].output.save()
            h1 = model.layers[1].output.save()
            h2 = model.layers[2].output.save()
            h3 = model.layers[3].output.save()
            h4 = model.layers[4].output.save()
            h5 = model.layers[5].output.save()
            h6 = model.layers[6].output.save()
            h7 = model.layers[7].output.save()
            h8 = model.layers[8].output.save()
            h9 = model.layers[9].output.save()
            h10 = model.layers[10].output.save()
            h11 = model.layers[11].output.save()
        return [h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11]

    def reads_in_a_loop(self) -> list[torch.Tensor]:
        model = self._model
        with model.trace(self._value):
            found = [model.layers[i].output for i in range(LAYERS)].save()
        return found

    def edits(self) -> None:
        model = self._model
        with model.trace(self._value):
            for i in range(LAYERS):
                model.layers[i].output = model.layers[i].output * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1_000)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Stack(LAYERS).eval()
    value = torch.randn(1, 32)
    hooks, blocks = Hooks(module, value), Blocks(NNsight(module), value)
    cases: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("empty block", hooks.empty, blocks.empty),
        ("1 read, saved", lambda: hooks.reads(1), blocks.one_read),
        ("12 reads, saved", lambda: hooks.reads(LAYERS), blocks.reads),
        ("12 reads in a loop", lambda: hooks.reads(LAYERS), blocks.reads_in_a_loop),
        ("12 edits", hooks.edits, blocks.edits),
    ]
    table = Table(title=f"{LAYERS} small MLP blocks, one thread, microseconds over the forward")
    for heading in ("case", "forward", "hooks", "block", "block / hooks"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    with torch.no_grad():
        for name, by_hooks, by_block in cases:
            bare, hooked, blocked = compare([hooks.empty, by_hooks, by_block], rounds)
            base = statistics.median(bare)
            added = [statistics.median(times) - base for times in (hooked, blocked)]
            ratio = f"{added[1] / added[0]:.2f}" if added[0] > 2 else "–"
            table.add_row(name, f"{base:.0f}", f"+{added[0]:.0f}", f"+{added[1]:.0f}", ratio)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{machine()}; "
        f"median of {rounds} rounds; the blocks stand in a plain script (second entry and later)"
    )


if __name__ == "__main__":
    main()
