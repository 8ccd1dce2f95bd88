"""Fixes: insertions that rules attach to findings whose correction is safe.

A fix is a set of insertions (`diagnostics.Insertion`); `fixed` applies all fixes of a file at
once, from the last position to the first, so that earlier positions stay valid. Line ends and
encoding are preserved. Positions are in bytes of UTF-8, so files in other encodings and notebooks
are not fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

from .diagnostics import Diagnostic, Insertion
from .sources import Source, UnreadableError, source_of


def fixed(file: str, content: bytes, diagnostics: Sequence[Diagnostic]) -> bytes:
    """Return the content of a file with all fixes of its diagnostics applied.

    The content is returned unchanged if the file cannot be fixed.
    """
    insertions = sorted(
        {one for found in diagnostics for one in found.fix if found.file == file},
        key=lambda one: (one.line, one.column),
        reverse=True,
    )
    if not insertions or file.endswith(".ipynb"):
        return content
    try:
        source = source_of(file, content)
    except UnreadableError:
        return content
    starts = _line_starts(content, source.lines)
    if starts is None:
        return content
    for one in insertions:
        content = _inserted(content, starts[one.line - 1] + one.column, one)
    return content


def can_be_fixed(source: Source, content: bytes) -> bool:
    """Return whether `fixed` can change a file: one in UTF-8 that is not a notebook."""
    return source.cells is None and _line_starts(content, source.lines) is not None


def _line_starts(content: bytes, lines: Sequence[str]) -> list[int] | None:
    """Return the byte offset of each line, None if the file is not in UTF-8."""
    starts, at = [], 0
    if content.startswith(b"\xef\xbb\xbf"):
        at = 3
    for line in lines:
        encoded = line.encode()
        if content[at : at + len(encoded)] != encoded:
            return None
        starts.append(at)
        at += len(encoded)
        at += 2 if content[at : at + 2] == b"\r\n" else 1
    return starts


def _inserted(content: bytes, at: int, one: Insertion) -> bytes:
    return content[:at] + one.text.encode() + content[at:]
