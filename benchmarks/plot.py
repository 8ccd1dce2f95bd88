"""Draw the figures of a run: `python -m benchmarks.plot figures.json plot.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .report import draw
from .results import Figure, Row


def main(source: str, target: str) -> int:
    found = json.loads(Path(source).read_text(encoding="utf-8"))
    rows = [
        Row(
            one["question"],
            one["name"],
            {k: Figure(v["median"], v["spread"]) for k, v in one["figures"].items()},
            one["unit"],
        )
        for one in found["rows"]
    ]
    return 0 if draw(rows, Path(target)) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
