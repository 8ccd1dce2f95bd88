"""Whether a text can hold a block at all, by a search for words; nothing is parsed for it."""

from __future__ import annotations

OPENING_CALLS = frozenset({"trace", "generate", "scan", "plan", "edit", "session"})
"""Methods that open an outermost block."""

_WORDS = tuple(f".{call}(".encode() for call in sorted(OPENING_CALLS))


def may_hold_blocks(source: bytes) -> bool:
    """Return whether a module's source mentions a method that opens a block."""
    return b"with" in source and any(word in source for word in _WORDS)
