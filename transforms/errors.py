"""Errors raised before a block runs, and the base classes that `runtime.errors` builds on.

A block can fail before it runs in three ways: its `with` statement was not used as one
(`BlockUseError`), its source text cannot be found (`BlockNotFoundError`), or the text holds a
construct that cannot be lowered (`UnsupportedSyntaxError`). All of them derive from the built-in
error of the same nature, so `except SyntaxError` works as expected.

`InterventionError` and `InternalError` are defined in this package because it is the lowest layer:
`nnsight_dsl.runtime.errors` re-exports both next to the errors of a running program.
"""

from __future__ import annotations


class InterventionError(Exception):
    """Base class of all errors of this package that a running block can raise."""


class InternalError(InterventionError, RuntimeError):
    """An invariant of this package does not hold: a bug in the package; it should be reported."""


class UnsupportedSyntaxError(SyntaxError):
    """A block contains a construct that cannot be lowered.

    The message names the construct, its line and a supported way to write it. It is raised before
    any statement of the block runs.
    """

    @classmethod
    def at(
        cls, what: str, remedy: str, filename: str, line: int, column: int, text: str | None
    ) -> UnsupportedSyntaxError:
        """Build the error for a construct at a line and a (0-based) column."""
        message = f"{what} in a block cannot be lowered; {remedy}"
        return cls(message, (filename, line, column + 1, text))


class BlockNotFoundError(OSError):
    """The source text of a block cannot be found, so the block cannot be lowered."""


class BlockUseError(TypeError):
    """A trace, an invoke or a session was entered without a `with` statement."""
