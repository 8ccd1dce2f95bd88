"""What rewritten modules call: see `nnsight_dsl.transforms.source.modules`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nnsight_dsl.transforms.live import names_around
from nnsight_dsl.transforms.stored import load_programs as programs

if TYPE_CHECKING:
    from nnsight_dsl.transforms.program import Program

__all__ = ["bound_by", "is_block", "programs", "run"]


def is_block(value: object) -> bool:
    """Tell whether a value opens a block of this package."""
    blocks = sys.modules.get("nnsight_dsl.block")
    # where nobody has imported it, nobody can have made one
    return blocks is not None and isinstance(value, blocks.Block)


def bound_by(block: Any) -> Any:
    """Return what the `as` target of a block's `with` statement is bound to."""
    return block._bound_value()


def run(block: Any, program: Program) -> dict[str | None, Any]:
    """Run a block that was lowered beforehand.

    Returns:
        The names that leave the block; under None, what has to be raised, if anything has.
    """
    frame = sys._getframe(1)
    left: dict[str | None, Any]
    left, failure = block._finished(program, frame.f_globals, names_around(frame), frame)
    if failure is not None:
        left[None] = failure
    return left
