"""Run the benchmarks side by side, print one table, and fail where a target is missed.

make bench                        everything: JSON, plot and docs/benchmarks.md too
make bench-quick                  the rows with a target, in under two minutes
python -m benchmarks --only contest --models "MLP stack"
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from . import cold, contest, lint, memory, operations, prices, report, scaling, sweeps
from .parts import MODELS, machine
from .results import Row

_PEERS = contest.ROOT / ".venv" / "peers" / "bin" / "python"
_PAGE = contest.ROOT / "docs" / "benchmarks.md"
_PLOT = contest.ROOT / "docs" / "benchmarks.png"
_JSON = contest.ROOT / "docs" / "benchmarks.json"


def _vllm(*, quick: bool) -> list[Row]:
    """Measure programs in an engine of vLLM, where that is installed."""
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed; 'make bench' does that"
        return [Row("an engine of vLLM", "programs in an engine", {}, reasons={"ours": reason})]
    from . import vllm_serving

    return vllm_serving.rows(quick=quick)


QUESTIONS: dict[str, Callable[..., list[Row]]] = {
    "contest": contest.rows,
    "scaling": scaling.rows,
    "sweeps": sweeps.rows,
    "cold": cold.rows,
    "memory": memory.rows,
    "operations": operations.rows,
    "prices": prices.rows,
    "lint": lint.rows,
    "vllm": _vllm,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="the rows with a target, and less long"
    )
    parser.add_argument("--only", action="append", choices=QUESTIONS, help="some of the questions")
    parser.add_argument("--models", action="append", choices=MODELS, help="some of the models")
    parser.add_argument(
        "--write", action="store_true", help="write the page, the plot and the JSON"
    )
    parser.add_argument("--peers", type=Path, default=_PEERS, help="the interpreter of the others")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 200)
    peers: Path | None = chosen.peers
    if not peers.exists():
        peers = None
        console.print("other libraries are not installed (make bench does that); without them")
    rows: list[Row] = []
    for name in chosen.only or QUESTIONS:
        print(name, file=sys.stderr)
        if name == "contest":
            models = chosen.models or MODELS
            rows += contest.rows(quick=chosen.quick, models=models, peers=peers)
        else:
            rows += QUESTIONS[name](quick=chosen.quick)
    report.show(rows, console)
    console.print(machine())
    text = report.as_json(rows, machine())
    if chosen.json is not None:
        chosen.json.write_text(text, encoding="utf-8")
    if chosen.write:
        _JSON.write_text(text, encoding="utf-8")
        drawn = _draw(peers)
        _PAGE.write_text(
            report.page(rows, machine(), _PLOT.name if drawn else None), encoding="utf-8"
        )
    missed = [row.name for row in rows if row.is_missed_for_certain()]
    if missed:
        console.print(f"missed by more than the spread of this run: {', '.join(missed)}")
    return 1 if missed else 0


def _draw(peers: Path | None) -> bool:
    """Draw the plot where matplotlib is, which is beside the other libraries."""
    command = [str(peers or sys.executable), "-m", f"{__package__}.plot", str(_JSON), str(_PLOT)]
    return subprocess.run(command, cwd=contest.ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
