"""What can go wrong before a block runs: it cannot be found, or it cannot be lowered."""

from __future__ import annotations


class UnsupportedSyntaxError(SyntaxError):
    """A construct stands in a block that no program can express.

    The message names the construct, the line and a way to write it. Nothing has run.
    """

    @classmethod
    def at(
        cls, what: str, remedy: str, filename: str, line: int, column: int, text: str | None
    ) -> UnsupportedSyntaxError:
        """Build the error for a construct at a line and a (0-based) column."""
        message = f"{what} in a block cannot be lowered; {remedy}"
        return cls(message, (filename, line, column + 1, text))


class BlockNotFoundError(OSError):
    """The source text of a block cannot be found, so that it cannot be lowered."""


class BlockUseError(TypeError):
    """A trace, an invoke or a session was entered otherwise than by a `with` statement."""
