"""Positions: where a piece of lowered code came from in the user's file.

Lowering turns the text of a block into other text, and the code object that runs has to carry
the user's lines and columns all the same. Each pass keeps, for each node that it returns, the
span of the node it came from (`Origins`). When the lowered text has been parsed by `ast`, every
`ast` node takes over the span that was kept for the same stretch of lowered text, and one that
has none (it was generated) takes over its parent's. So every position in the compiled code lies
inside the user's statement that it came from.

`libcst` counts columns in characters, `ast` and code objects in bytes of UTF-8; spans are in
characters, and the conversion happens here.
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
    """A stretch of text: lines count from 1, columns from 0 and in characters."""

    line: int
    column: int
    end_line: int
    end_column: int

    def moved(self, lines: int) -> Span:
        """Return the same stretch a number of lines further down."""
        return Span(self.line + lines, self.column, self.end_line + lines, self.end_column)

    def start(self) -> Span:
        """Return the place where the stretch begins, without its text."""
        return Span(self.line, self.column, self.line, self.column)


class Origins:
    """For each node of a lowered tree, the span in the user's file that it came from."""

    def __init__(self) -> None:
        self._spans: dict[cst.CSTNode, Span] = {}

    def span_of(self, node: cst.CSTNode) -> Span | None:
        return self._spans.get(node)

    def keep(self, node: cst.CSTNode, span: Span | None) -> None:
        """Remember where a node came from; a node keeps the first span it was given."""
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
    """Give every node of `tree` its position in the user's file, in place.

    Args:
        tree: the parsed lowered text.
        lowered_lines: the lines of the lowered text.
        user_lines: the lines of the user's file.
        spans: from a stretch of the lowered text to the stretch of the user's file it came from.
        fallback: the span of the whole block, for what comes from nowhere in particular.
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
