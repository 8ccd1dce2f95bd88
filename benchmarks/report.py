"""The table on the screen, the JSON file, the plot and the page of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .results import Row


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the rows, a table for each question."""
    for question, group in _grouped(rows):
        table = Table(title=question, title_justify="left")
        columns = _columns(group)
        for heading in ("case", *columns, "target"):
            table.add_column(heading, justify="left" if heading in ("case", "target") else "right")
        for row in group:
            table.add_row(*_cells(row, columns))
        console.print(table)
        for reason in _reasons(group):
            console.print(f"  – {reason}", style="dim")


def as_json(rows: Sequence[Row], machine: str) -> str:
    """Write the rows as JSON."""
    found: list[dict[str, Any]] = [
        {
            "question": row.question,
            "name": row.name,
            "unit": row.unit,
            "figures": {
                name: {"median": one.value, "spread": one.spread}
                for name, one in row.figures.items()
            },
            "targets": [
                {"figure": one.figure, "at_most": one.at_most, "verdict": row.verdict(one)}
                for one in row.targets
            ],
            "reasons": dict(row.reasons),
        }
        for row in rows
    ]
    return json.dumps({"machine": machine, "rows": found}, indent=1, ensure_ascii=False) + "\n"


def page(rows: Sequence[Row], machine: str, plot: str | None) -> str:
    """Write the page."""
    lines = [
        "# Benchmarks", "",
        "`make bench` makes this page. Figures are from one run on one machine, and the machine "
        "was shared: compare the ratios, not the microseconds.", "",
        f"Measured with {machine}.", "",
        "A figure is a median, with half of the range in which nine in ten of such medians lie. "
        "*bare* is the forward alone; the columns of contestants are what each adds to the "
        "forward of its own process, measured beside it in the same turn; ratios are ratios of "
        "what is added. *imported*: a module under the import hook; *script*: a plain script, "
        "second entry and later. A target that is missed stays in the table: the prices, further "
        "down, say what of it goes where, and docs/design/0003-prices.md why.", "",
    ]  # fmt: skip
    if plot is not None:
        lines += [f"![what each adds to the forward]({plot})", ""]
    for question, group in _grouped(rows):
        columns = _columns(group)
        lines += [f"## {question[0].upper()}{question[1:]}", ""]
        lines.append("| " + " | ".join(("case", *columns, "target")) + " |")
        lines.append("|" + "---|" * (len(columns) + 2))
        lines += ["| " + " | ".join(_cells(row, columns)) + " |" for row in group]
        lines.append("")
        lines += [f"- {reason}" for reason in _reasons(group)]
        if _reasons(group):
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def draw(rows: Sequence[Row], path: Path) -> bool:
    """Draw what each contestant adds in each case; False where matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [one for one in _grouped(rows) if any("hooks" in row.figures for row in one[1])]
    if not groups:
        return False
    figure, axes = pyplot.subplots(len(groups), 1, figsize=(9, 3.2 * len(groups)), squeeze=False)
    for axis, (question, group) in zip(axes[:, 0], groups, strict=True):
        names = [name for name in _columns(group) if "/" not in name and name != "bare"]
        for number, name in enumerate(names):
            at = [i + (number - len(names) / 2) * 0.8 / len(names) for i in range(len(group))]
            have = [(x, row.figures[name]) for x, row in zip(at, group, strict=True)
                    if name in row.figures]  # fmt: skip
            axis.bar(
                [x for x, _ in have],
                [max(one.value, 0.1) for _, one in have],
                0.8 / len(names),
                yerr=[one.spread for _, one in have],
                label=name,
            )
        axis.set_yscale("log")
        axis.set_ylabel("µs")
        axis.set_title(question, loc="left", fontsize=9)
        axis.set_xticks(range(len(group)), [row.name for row in group], rotation=20, ha="right",
                        fontsize=7)  # fmt: skip
    axes[0, 0].legend(fontsize=7, ncols=len(names), loc="lower right", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    return True


def _grouped(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for question in dict.fromkeys(row.question for row in rows):
        yield question, [row for row in rows if row.question == question]


def _columns(group: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in group for name in (*row.figures, *row.reasons)))


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    verdicts = [f"{one.figure} ≤ {one.at_most:g}: {row.verdict(one)}" for one in row.targets]
    unit = "" if row.unit == "µs" else f" ({row.unit})"
    return [
        row.name + unit,
        *[str(row.figures[name]) if name in row.figures else "–" for name in columns],
        "; ".join(verdicts),
    ]


def _reasons(group: Sequence[Row]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in group:
        for name, reason in row.reasons.items():
            found.setdefault((name, reason), []).append(row.name)
    return [f"{name}, {', '.join(cases)}: {reason}" for (name, reason), cases in found.items()]
