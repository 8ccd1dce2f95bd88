"""Source map: the position in the user's file from which each piece of lowered code came.

Tracebacks, debuggers and coverage must show the user's lines and columns, although the compiled
text is another one. The mechanism has two halves:

1. Each pass records, for each node it returns, the span of the node it came from (`Origins`).
2. The lowered tree is printed and parsed by `ast`. Each `ast` node gets the span recorded for the
   same stretch of lowered text; a generated node, which has none, inherits its parent's.

So every position in the compiled code lies inside the user's statement from which the code came.
If a pass forgets to record a node, that node gets the position of a larger one around it: a
traceback is then less precise, but never points outside the statement.

`libcst` counts columns in characters, `ast` and code objects in bytes of UTF-8. Spans are in
characters; the conversion happens here.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import libcst as cst


@dataclass(frozen=True, slots=True)
class Span:
    """A range of text; lines count from 1, columns from 0 and in characters."""

    line: int
    column: int
    end_line: int
    end_column: int

    def moved(self, lines: int) -> Span:
        """Return the span shifted down by a number of lines."""
        return Span(self.line + lines, self.column, self.end_line + lines, self.end_column)

    def start(self) -> Span:
        """Return the empty span at the beginning of this one."""
        return Span(self.line, self.column, self.line, self.column)


class Origins:
    """The span in the user's file of each node of a lowered tree."""

    def __init__(self) -> None:
        self._spans: dict[cst.CSTNode, Span] = {}

    def span_of(self, node: cst.CSTNode) -> Span | None:
        return self._spans.get(node)

    def keep(self, node: cst.CSTNode, span: Span | None) -> None:
        """Record the span of a node, unless it has one: the first span wins."""
        if span is not None:
            self._spans.setdefault(node, span)

    def items(self) -> Sequence[tuple[cst.CSTNode, Span]]:
        return list(self._spans.items())


def _byte_column(lines: Sequence[str], line: int, column: int) -> int:
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    return column if text.isascii() else len(text[:column].encode())


def _character_column(lines: Sequence[str], line: int, column: int) -> int:
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    return column if text.isascii() else len(text.encode()[:column].decode(errors="replace"))


def relocate(
    tree: ast.AST,
    lowered_lines: Sequence[str],
    user_lines: Sequence[str],
    spans: Mapping[Span, Span],
    fallback: Span,
) -> None:
    """Replace the position of every node of `tree` by its position in the user's file.

    Args:
        tree: the parsed lowered text; changed in place.
        lowered_lines: the lines of the lowered text.
        user_lines: the lines of the user's file.
        spans: maps spans of the lowered text to spans of the user's file.
        fallback: the span of the whole block, for nodes without a recorded span above them.
    """
    stack: list[tuple[ast.AST, Span]] = [(tree, fallback)]
    while stack:
        node, inherited = stack.pop()
        line = getattr(node, "lineno", None)
        if line is not None:
            placed = cast(ast.expr, node)
            end_line = placed.end_lineno or line
            here = Span(
                line,
                _character_column(lowered_lines, line, placed.col_offset),
                end_line,
                _character_column(lowered_lines, end_line, placed.end_col_offset or 0),
            )
            inherited = spans.get(here, inherited)
            placed.lineno = inherited.line
            placed.end_lineno = inherited.end_line
            placed.col_offset = _byte_column(user_lines, inherited.line, inherited.column)
            placed.end_col_offset = _byte_column(
                user_lines, inherited.end_line, inherited.end_column
            )
        stack.extend((child, inherited) for child in ast.iter_child_nodes(node))
