"""What does the first entry of a block cost, by where it stands, and what a later one?

A block of twelve lines is entered in a plain script (where it is found and lowered when it is
first met, and its body skipped at each entry), in a module under the import hook (lowered when the
module is compiled, or read from the cache beside the `.pyc`) and in an `@intervene` function. Every
first entry is of a new copy of the file. Beside it: importing the package, and a wrapped model that
nobody runs.
"""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nnsight_dsl import NNsight, install_import_hook

from .parts import LAYERS, Stack, compare, once
from .results import Figure, Row, Target, figure_of, median_figure, ratio_figure

_QUESTION = "cold: entering a block, with its run"
LINES = "\n".join(f"    {{indent}}h{i} = model.layers[{i}].output" for i in range(LAYERS - 1))
BLOCK = f"""
def user(model, x):
    with model.trace(x):
{LINES.format(indent="    ")}
        found = (h0 + h{LAYERS - 2}).save()
    return found
"""
PROGRAM = f"""
from nnsight_dsl import intervene

@intervene
def program(model):
{LINES.format(indent="")}
    return h0 + h{LAYERS - 2}

def user(model, x):
    return program.run(model, x)
"""


def _written(folder: Path, name: str, text: str = BLOCK) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def _as_script(path: Path) -> Callable[..., Any]:
    """Run a file as a plain script, and return its function."""
    names: dict[str, Any] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    function: Callable[..., Any] = names["user"]
    return function


def _imported(path: Path) -> Callable[..., Any]:
    """Import a file anew, and return its function."""
    sys.modules.pop(path.stem, None)
    importlib.invalidate_caches()
    function: Callable[..., Any] = importlib.import_module(path.stem).user
    return function


def rows(*, quick: bool) -> list[Row]:
    """Measure first entries, later entries, the import and the idle model."""
    found = []
    model, x = NNsight(Stack(LAYERS).eval()), torch.randn(1, 32)
    written_before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        sys.path.insert(0, name)
        try:
            found += _entries(Path(name), model, x, copies=5 if quick else 15)
            found.append(_later(Path(name), model, x, 300 if quick else 2_000))
        finally:
            sys.path.remove(name)
            sys.dont_write_bytecode = written_before
    return [*found, _imports(3 if quick else 10), _idle(300 if quick else 2_000)]


def _entries(folder: Path, model: Any, x: Any, copies: int) -> list[Row]:
    # the very first entry imports libcst
    very_first = once(partial(_as_script(_written(folder, "warm_up")), model, x))
    times: dict[str, list[float]] = {
        "script": [], "imported": [], "imported, cached": [], "@intervene": []
    }  # fmt: skip
    for i in range(copies):
        function = _as_script(_written(folder, f"script_{i}"))
        times["script"].append(once(partial(function, model, x)))
        path = _written(folder, f"module_{i}")
        with install_import_hook(path.stem):
            for kind in ("imported", "imported, cached"):
                times[kind].append(once(lambda path=path: _imported(path)(model, x)))
        function = _as_script(_written(folder, f"program_{i}", PROGRAM))
        times["@intervene"].append(once(partial(function, model, x)))
    figures = {name: median_figure([one / 1_000 for one in own]) for name, own in times.items()}
    return [
        Row(_QUESTION, f"first entry of {LAYERS} lines", figures, "ms"),
        Row(_QUESTION, "the very first, with libcst", {"script": Figure(very_first / 1_000)}, "ms"),
    ]


def _later(folder: Path, model: Any, x: Any, rounds: int) -> Row:
    script = _as_script(_written(folder, "script"))
    path = _written(folder, "module")
    with install_import_hook("module"):
        module = _imported(path)
    one, other = compare([lambda: script(model, x), lambda: module(model, x)], rounds)

    def difference(turns: Sequence[int]) -> float:
        return statistics.median(one[i] for i in turns) - statistics.median(other[i] for i in turns)

    figures = {
        "script": median_figure(one), "imported": median_figure(other),
        "script - imported": figure_of(rounds, difference),
    }  # fmt: skip
    return Row(_QUESTION, "later entries", figures, targets=[Target("script - imported", 20)])


def _imports(times: int) -> Row:
    def seconds(module: str) -> float:
        text = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=True
        )
        return float(done.stdout) * 1_000

    ours, others = [], []
    for _ in range(times):
        ours.append(seconds("nnsight_dsl"))
        others.append(seconds("torch"))
    figures = {"nnsight_dsl": median_figure(ours), "torch": median_figure(others)}
    return Row("cold: importing", "a new process", figures, "ms")


def _idle(rounds: int) -> Row:
    module, x = Stack(LAYERS).eval(), torch.randn(1, 32)
    before = {path: (type(one), dict(vars(one))) for path, one in module.named_modules()}
    times = [compare([lambda: module(x)], rounds)[0]]
    model = NNsight(module)
    with model.trace(x):
        model.layers[0].output.save()
    touched = sum(
        type(one) is not before[path][0] or vars(one) != before[path][1]
        for path, one in module.named_modules()
    )
    times.append(compare([lambda: module(x)], rounds)[0])
    figures = {
        "never wrapped": median_figure(times[0]), "wrapped, has run": median_figure(times[1]),
        "wrapped / never": ratio_figure(times[1], times[0]), "modules touched": Figure(touched),
    }  # fmt: skip
    return Row("idle: no run", "forward", figures, targets=[Target("modules touched", 0)])
