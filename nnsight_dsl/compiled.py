"""What rewritten modules call: see `nnsight_dsl.transforms.source.modules`."""

from __future__ import annotations

import sys
from inspect import CO_OPTIMIZED
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
    # what `names_around` returns for the frame of a function, without one of its own
    is_function = frame.f_code.co_flags & CO_OPTIMIZED
    names = frame.f_locals if is_function else names_around(frame)
    short_way = block._short_way
    found = short_way and short_way(block, program, frame.f_globals, names)
    left, failure = found or block._finished(program, frame.f_globals, names, frame)
    if failure is not None:
        left[None] = failure
    return left
