"""Findings and diagnostics.

A rule yields a `Finding`, which refers to a node of the syntax tree. The engine converts it to a
`Diagnostic`, which has the position in the file or in the cell of a notebook, and no tree.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

ERROR = "error"
"""Severity of code that raises an error when it runs."""
WARNING = "warning"
"""Severity of code that runs, but does something else than it appears to do."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """A text to insert at a position; lines count from 1, columns from 0 and in bytes."""

    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake found by a rule at a node of the user's syntax tree.

    Attributes:
        node: the node that the diagnostic marks.
        message: the observed fact and, after a semicolon, the remedy.
        fix: insertions that correct the mistake, empty unless that is safe.
        raises: name of the error that a run is certain to raise when it reaches the node, empty if
            it need not fail.
    """

    node: ast.expr | ast.stmt
    message: str
    fix: tuple[Insertion, ...] = ()
    raises: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A finding with its position in a file.

    Attributes:
        file: the file name as the user gave it.
        line: first line, from 1; in a notebook, counted in the cell.
        column: first column, from 1 and in characters.
        end_line: last line.
        end_column: first column after the end.
        code: code of the rule.
        message: the observed fact and, after a semicolon, the remedy.
        severity: `"error"` or `"warning"`.
        cell: number of the notebook cell, from 1; None in a Python file.
        fix: insertions that correct the mistake, with positions in the whole source.
    """

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    code: str
    message: str
    severity: str
    cell: int | None = None
    fix: tuple[Insertion, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the diagnostic as values that `json` can write."""
        found: dict[str, object] = {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
            "code": self.code,
            "message": self.message,
            "severity": self.severity,
            "fixable": bool(self.fix),
        }
        if self.cell is not None:
            found["cell"] = self.cell
        return found


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Sort diagnostics by position."""
    return sorted(
        diagnostics, key=lambda one: (one.file, one.cell or 0, one.line, one.column, one.code)
    )
