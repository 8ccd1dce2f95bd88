"""Diagnostics: what a rule has found, and where."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

ERROR = "error"
"""Severity of what raises."""
WARNING = "warning"
"""Severity of what runs, and means something else than it seems to."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """Text to be put into a file; lines count from 1, columns from 0 and in bytes."""

    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule reports: a node of the user's syntax tree, and what is wrong there.

    Attributes:
        node: the node at which the diagnostic begins.
        message: what was seen; after a semicolon, what to do.
        fix: text to insert, where that is a safe cure.
        raises: the error that a run is certain to raise there, if it comes to that line.
    """

    node: ast.expr | ast.stmt
    message: str
    fix: tuple[Insertion, ...] = ()
    raises: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding, with its place in a file.

    Attributes:
        file: the file, as it was named.
        line: from 1; in a notebook, in its cell.
        column: from 1, in characters.
        end_line: last line.
        end_column: first column behind.
        code: code of the rule.
        message: what was seen; after a semicolon, what to do.
        severity: `"error"` or `"warning"`.
        cell: number of the cell of a notebook, from 1.
        fix: insertions that cure it; their positions are those of the whole source.
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
        """Return the diagnostic as JSON holds it."""
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
    """Sort diagnostics by their place."""
    return sorted(
        diagnostics, key=lambda one: (one.file, one.cell or 0, one.line, one.column, one.code)
    )
