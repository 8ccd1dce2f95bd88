"""A cheap test whether a source text may contain a block: a search for words, without parsing.

It may give false positives (other libraries have a `.trace(` too), and gives no false negatives
for calls written as `model.trace(...)`.
"""

from __future__ import annotations

OPENING_CALLS = frozenset({"trace", "generate", "scan", "plan", "edit", "session", "pipe"})
"""Methods that open an outermost block, as in `with model.trace(...):`."""

_WORDS = tuple(f".{call}(".encode() for call in sorted(OPENING_CALLS))


def may_hold_blocks(source: bytes) -> bool:
    """Return whether a module's source mentions `with` and a method that opens a block."""
    return b"with" in source and any(word in source for word in _WORDS)
