"""What does the linter cost: on a hundred files, on the same again, and at the entry of a run?

The files are of 500 lines each, and hold two traces every fifteen lines, which is far more than
most do. Each is linted by the command, in a process of its own, with an empty cache and then with
what the first call has left there. At the entry of a run two costs are shown: of the first entry of
a program, beside the same with the linter off, and of looking up that nothing is left to check.
"""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import torch

from nnsight_dsl import CONFIG, NNsight

from .results import Figure, Row, median_figure

_QUESTION = "the linter"

FILES = 100
LINES = 500
PAIRS = 30
EXPERIMENT = """
def experiment_{number}(model, prompt):
    with model.trace(prompt) as tracer:
        hidden = model.transformer.h[{early}].output.save()
        model.transformer.h[{late}].mlp.output[:, -1] = 0
        logits = model.lm_head.output[:, -1].save()
    with model.trace() as tracer:
        with tracer.invoke(prompt):
            clean = model.transformer.h[{early}].output
        with tracer.invoke("other"):
            model.transformer.h[{early}].output = clean
            patched = model.lm_head.output.save()
    values = [one * 2 for one in range(10)]
    return hidden, logits, patched, values
"""


def text_of_file(number: int) -> str:
    """A file of at least `LINES` lines, like no other."""
    text = f"# file {number}\n"
    while text.count("\n") < LINES:
        count = text.count("def ")
        text += EXPERIMENT.format(number=count, early=count % 4, late=count % 4 + 1)
    return text


def seconds_to_lint(folder: Path, *options: str) -> float:
    """Run the command on a folder; return how long it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "nnsight_dsl", "lint", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stdout != "nothing found\n":
        raise RuntimeError(f"not as expected: {done.stdout}{done.stderr}")
    return time.perf_counter() - began


def first_entries() -> dict[str, list[float]]:
    """Enter new blocks with the linter and without, in turns; return the times in seconds."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model = NNsight(module)
    text = "with model.trace(x):\n    first = model[0].output.save()\n    model[1].output[:] = 0\n"
    found: dict[str, list[float]] = {"error": [], "off": []}
    for number in range(2 * PAIRS):
        setting = ("error", "off")[number % 2]
        CONFIG.APP.LINT = setting
        name = f"<block {number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        code = compile(text, name, "exec")
        names = {"model": model, "x": torch.ones(1, 2)}
        began = time.perf_counter()
        exec(code, names)
        found[setting].append(time.perf_counter() - began)
    CONFIG.APP.LINT = "error"
    return found


def lookup_in_microseconds() -> float:
    """The part of an entry that is left when a program has been checked."""
    model = NNsight(torch.nn.Linear(2, 2))
    program = object()
    model._linted.add(program)  # type: ignore[arg-type]
    statement = 'CONFIG.APP.LINT != "off" and program not in tracer._model._linted'
    names = {"CONFIG": CONFIG, "program": program, "tracer": model.trace(torch.ones(2))}
    return min(timeit.repeat(statement, globals=names, number=100_000, repeat=7)) * 10


def rows(*, quick: bool) -> list[Row]:
    """Measure the command, and the entry of a run."""
    files_count = 20 if quick else FILES
    cache = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        try:
            files = Path(folder) / "files"
            files.mkdir()
            for number in range(files_count):
                text = text_of_file(number)
                (files / f"file{number}.py").write_text(text, encoding="utf-8")
            first, again = seconds_to_lint(files), seconds_to_lint(files)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if cache is not None:
                os.environ["XDG_CACHE_HOME"] = cache
    found = first_entries()
    entries = {name: median_figure([one * 1e3 for one in own[4:]]) for name, own in found.items()}
    lookup = Figure(lookup_in_microseconds())
    return [
        Row(
            _QUESTION,
            f"{files_count} files of {LINES} lines",
            {"first": Figure(first), "unchanged": Figure(again)},
            "s",
        ),
        Row(
            _QUESTION,
            "first entry of a program",
            {"checked": entries["error"], "linter off": entries["off"]},
            "ms",
        ),
        Row(_QUESTION, "each further entry", {"checked": lookup}),
    ]
