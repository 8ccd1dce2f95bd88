"""What does a block cost, beside hooks by hand and other libraries?

Each contestant runs each case on each model, in turns: A B C A B C. Those of one interpreter take
turns call by call, and the interpreters take turns too, each with the bare forward beside it. What
a contestant adds to the bare forward of its own process, in the same turn, is its overhead; ratios
are ratios of overheads.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .contestants import CASES
from .results import Figure, Row, Target, figure_of

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("nnsight", "transformer_lens", "pyvene")
OURS = ("imported", "script")
TARGETS: Mapping[tuple[str, str], Sequence[Target]] = {
    ("empty", "MLP stack"): (
        Target("imported / nnsight", 0.12),
        Target("script / nnsight", 0.35),
    ),
    ("read_1", "MLP stack"): (Target("imported / hooks", 1.2),),
    ("reads_12", "MLP stack"): (Target("imported / hooks", 0.8),),
    ("edits_12", "MLP stack"): (Target("imported / hooks", 1.0),),
    ("invokes_64", "deep GPT-2"): (Target("imported / nnsight", 0.25),),
}
_QUICK = (*TARGETS, ("reads_loop_12", "MLP stack"), ("read_1", "small GPT-2"))
_LEAST = 2.0
"""Microseconds of overhead below which a ratio says nothing."""

_MOST_REPEATS = 3


class Worker:
    """A process that runs contestants when it is asked to."""

    def __init__(self, interpreter: Path | str, contestants: Sequence[str]) -> None:
        self.contestants = contestants
        self._process = subprocess.Popen(
            [str(interpreter), "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, cwd=ROOT,
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, and wait for the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a worker has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {', '.join(self.contestants)} has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)


def rows(*, quick: bool, models: Sequence[str], peers: Path | None) -> list[Row]:
    """Run the cases."""
    workers = [Worker(sys.executable, ("bare", "hooks", *OURS))]
    if peers is not None:
        workers += [Worker(peers, ("bare", one)) for one in PEERS]
    try:
        return [
            _told(workers, case, model, 1.5 if quick else 4.0)
            for model in models
            for case in CASES
            if not quick or (case, model) in _QUICK
            if model != "deep GPT-2" or case.startswith("invokes")
        ]
    finally:
        for worker in workers:
            worker.close()


def _told(workers: Sequence[Worker], case: str, model: str, seconds: float) -> Row:
    """Measure a row; again, where other load has hidden a ratio that has a target."""
    row = _measured(workers, case, model, seconds)
    for _ in range(_MOST_REPEATS):
        hidden = [
            target.figure
            for target in row.targets
            if target.figure not in row.figures
            and all(one in row.figures for one in target.figure.split(" / "))
        ]
        if not hidden:
            break
        row = _measured(workers, case, model, seconds)
    return row


def _measured(workers: Sequence[Worker], case: str, model: str, seconds: float) -> Row:
    print(f"{model}: {CASES[case]}", file=sys.stderr)
    added: dict[str, list[float]] = {}
    bare: list[float] = []
    reasons: dict[str, str] = {}
    begin = time.perf_counter()
    is_slow = model == "GPT-2 124M"
    warm_up, rounds, turns = (1 if is_slow else 3), (1 if is_slow else 2), 0
    while turns < (3 if is_slow else 4) or (time.perf_counter() - begin < seconds and turns < 200):
        for worker in workers:
            answer = worker.ask(
                do="time", case=case, model=model, contestants=worker.contestants,
                warm_up=warm_up if turns == 0 else 0, rounds=rounds,
            )  # fmt: skip
            reasons.update(answer["reasons"])
            medians = {name: statistics.median(times) for name, times in answer["times"].items()}
            if worker is workers[0] and "bare" in medians:
                bare.append(medians["bare"])
            if turns:
                for name, median in medians.items():
                    if "bare" in medians and name != "bare":
                        added.setdefault(name, []).append(median - medians["bare"])
        turns += 1
        # as many rounds in a turn as take some tens of milliseconds, and of what is slow but one
        rounds = max(1 if bare[-1] > 100_000 else 3, min(30, int(10_000 / bare[-1]))) if bare else 1
        if not bare:
            break
    bare = bare[1:]
    figures: dict[str, Figure] = {}
    if bare:
        figures["bare"] = _median(bare)
    figures.update({name: _median(times) for name, times in added.items()})
    for one in OURS:
        for other in ("hooks", "nnsight"):
            ratio = _ratio(added.get(one), added.get(other))
            if ratio is not None:
                figures[f"{one} / {other}"] = ratio
    return Row(
        f"{model}: added to the forward", CASES[case], figures,
        targets=TARGETS.get((case, model), ()), reasons=reasons,
    )  # fmt: skip


def _median(times: Sequence[float]) -> Figure:
    return figure_of(len(times), lambda turns: statistics.median(times[i] for i in turns))


def _ratio(one: Sequence[float] | None, other: Sequence[float] | None) -> Figure | None:
    if not one or not other:
        return None
    below = _median(other)
    if below.value < max(_LEAST, 2 * below.spread):
        # what it would be a ratio to is not told from nothing
        return None

    def ratio(turns: Sequence[int]) -> float:
        below = statistics.median(other[i] for i in turns)
        return statistics.median(one[i] for i in turns) / max(below, _LEAST)

    return figure_of(min(len(one), len(other)), ratio)
