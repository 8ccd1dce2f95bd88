"""What it costs to enter a block for the first time, and again, by where the block stands.

    make bench

A block of twelve lines is entered in a plain script (where it is found and lowered when it is
first met, and its body skipped at each entry) and in a module under the import hook (lowered when
the module is compiled, or read from the cache beside the `.pyc`). Every first entry is of a new
copy of the file. Figures are from one run on one machine.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import LAYERS, Stack, compare, machine, once
from rich.console import Console
from rich.table import Table

from nnsight_dsl import NNsight, install_import_hook

COPIES = 10
ROUNDS = 1_000
LINES = "\n".join(f"        h{i} = model.layers[{i}].output" for i in range(LAYERS - 1))
TEXT = f"""
def user(model, x):
    with model.trace(x):
{LINES}
        found = (h0 + h{LAYERS - 2}).save()
    return found
"""


def written(folder: Path, name: str) -> Path:
    """Write a copy of the module."""
    path = folder / f"{name}.py"
    path.write_text(TEXT)
    return path


def as_script(path: Path) -> Callable[..., Any]:
    """Run a file as a plain script, and return its function."""
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    function: Callable[..., Any] = names["user"]
    return function


def imported(path: Path) -> Callable[..., Any]:
    """Import a file anew, and return its function."""
    sys.modules.pop(path.stem, None)
    function: Callable[..., Any] = importlib.import_module(path.stem).user
    return function


def main() -> None:
    torch.set_num_threads(1)
    sys.dont_write_bytecode = False
    console = Console(width=100)
    model, x = NNsight(Stack(LAYERS).eval()), torch.randn(1, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, name)
        begin = time.perf_counter_ns()
        as_script(written(folder, "warm_up"))(model, x)
        very_first = (time.perf_counter_ns() - begin) / 1_000

        def imported_call(path: Path) -> Any:
            return imported(path)(model, x)

        first: dict[str, list[float]] = {"script": [], "import hook": [], "cached": []}
        for i in range(COPIES):
            path = written(folder, f"script_{i}")
            function = as_script(path)
            first["script"].append(once(partial(function, model, x)))
            path = written(folder, f"module_{i}")
            with install_import_hook(path.stem):
                for kind in ("import hook", "cached"):
                    importlib.invalidate_caches()
                    first[kind].append(once(partial(imported_call, path)))
        script = as_script(written(folder, "script"))
        path = written(folder, "module")
        with install_import_hook("module"):
            module = imported(path)
        later = compare([lambda: script(model, x), lambda: module(model, x)], ROUNDS)
    by_script, by_module = map(statistics.median, later)
    table = Table(title=f"a block of {LAYERS} lines, microseconds with its run")
    for heading in ("entered", "plain script", "import hook", "import hook, cached"):
        table.add_column(heading, justify="left" if heading == "entered" else "right")
    table.add_row("first", *[f"{statistics.median(times):,.0f}" for times in first.values()])
    table.add_row("again", f"{by_script:.0f}", f"{by_module:.0f}", f"{by_module:.0f}")
    console.print(table)
    console.print(
        f"{machine()}; median of {COPIES} files and {ROUNDS} later entries; the first entry of "
        f"all, which imports libcst, took {very_first / 1_000:.0f} ms"
    )
    console.print(
        f"a later entry in a plain script costs {by_script - by_module:+.0f} µs over an imported "
        "one (target: at most 20)"
    )


if __name__ == "__main__":
    main()
