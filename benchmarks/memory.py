"""How much memory does a block hold, and does a process grow with its runs?

The peak is that of a process which runs a stack of layers on a tensor of 16 MiB: alone, with a
block that reads the output of each layer and saves the last, and with one that saves all. The
growth is that of a process over many traces, in bytes and in objects that the collector knows.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from nnsight_dsl import NNsight

from .parts import LAYERS, Stack
from .results import Figure, Row

_QUESTION = "memory"
_LAYERS = 24
_FLOATS = 4 * 2**20


class Scaling(nn.Module):
    """A layer without weights, whose output is as large as its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.001


class Tower(nn.Module):
    """A stack of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaling() for _ in range(_LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def rows(*, quick: bool) -> list[Row]:
    """Measure each in a process of its own."""
    peaks = {name: Figure(_asked("peak", name)["peak"]) for name in ("bare", "one", "all")}
    found = _asked("growth", "200" if quick else "1000")
    return [
        Row(
            _QUESTION,
            f"peak of {_LAYERS} layers read, 16 MiB each",
            {
                "bare": peaks["bare"],
                "one is saved": peaks["one"],
                "all are saved": peaks["all"],
            },
            "MiB",
        ),
        Row(
            _QUESTION,
            f"growth over {found['traces']:,.0f} traces",
            {"objects in all": Figure(found["objects"]), "KiB in all": Figure(found["KiB"])},
            "count",
        ),
    ]


def _asked(*words: str) -> dict[str, float]:
    command = [sys.executable, "-m", f"{__package__}.memory", *words]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _peak(kind: str) -> dict[str, float]:
    module = Tower()
    model = NNsight(module)
    small = torch.ones(1)
    with model.trace(small):
        model.layers[0].output.save()
    x = torch.ones(_FLOATS)
    before = _peak_so_far()
    with torch.no_grad():
        if kind == "bare":
            module(x)
        elif kind == "one":
            with model.trace(x):
                for i in range(_LAYERS):
                    last = model.layers[i].output
                last = last.save()
        else:
            with model.trace(x):
                kept = [].save()
                for i in range(_LAYERS):
                    kept.append(model.layers[i].output)
    return {"peak": (_peak_so_far() - before) / 1024}


def _peak_so_far() -> int:
    """Return the peak of this process in KiB; what getrusage tells includes its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _growth(traces: int) -> dict[str, float]:
    model, x = NNsight(Stack(LAYERS).eval()), torch.randn(1, 32)

    def run() -> None:
        with model.trace(x):
            first = model.layers[0].output.save()
            model.layers[3].output[:] *= 2

    for _ in range(50):
        run()
    objects, size = _state()
    for _ in range(traces):
        run()
    later = _state()
    return {"traces": traces, "objects": later[0] - objects, "KiB": (later[1] - size) / 1024}


def _state() -> tuple[int, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return len(gc.get_objects()), pages * resource.getpagesize()


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, word = sys.argv[1:]
    print(json.dumps(_peak(word) if what == "peak" else _growth(int(word))))
