"""What the linter costs: on a hundred files, on the same again, and at the entry of a run.

    python benchmarks/lint.py

The files are of 500 lines each, and hold two traces every fifteen lines, which is far more than
most do. Each is linted by the command, in a process of its own, with an empty cache and then with
what the first call has left there. At the entry of a run two costs are shown: of the first entry of
a program, beside the same with the linter off, and of looking up that nothing is left to check.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import torch
from rich.console import Console

from nnsight_dsl import CONFIG, NNsight

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
        raise SystemExit(f"not as expected: {done.stdout}{done.stderr}")
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
        import linecache

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


def main() -> None:
    console = Console(width=100)
    console.print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        files = Path(folder) / "files"
        files.mkdir()
        for number in range(FILES):
            (files / f"file{number}.py").write_text(text_of_file(number))
        first, again = seconds_to_lint(files), seconds_to_lint(files)
    console.print(f"{FILES} files of {LINES} lines: {first:.2f} s, unchanged {again:.2f} s")
    found = first_entries()
    ours, bare = (statistics.median(found[one][4:]) * 1e3 for one in ("error", "off"))
    console.print(f"first entry of a program: {ours:.2f} ms, {bare:.2f} ms with the linter off")
    console.print(f"each further entry: {lookup_in_microseconds():.3f} µs")


if __name__ == "__main__":
    main()
