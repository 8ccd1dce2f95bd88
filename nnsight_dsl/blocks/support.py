"""The functions that rewritten modules call: see `nnsight_dsl.transforms.source.modules`."""

from __future__ import annotations

import sys
from inspect import CO_OPTIMIZED
from typing import TYPE_CHECKING, Any

from nnsight_dsl.runtime.tracebacks import released
from nnsight_dsl.transforms.frame_names import names_around
from nnsight_dsl.transforms.program_bytes import load_programs as programs

if TYPE_CHECKING:
    from nnsight_dsl.transforms.program import Program

__all__ = ["Unbound", "blocks", "bound_by", "is_block", "is_instance", "programs", "run"]

blocks: tuple[type, ...] = ()
"""Classes that open a block of this package; empty until `blocks.block` is imported."""

is_instance, Unbound = isinstance, NameError
"""Builtins under names that the user's module cannot redefine."""


def is_block(value: object) -> bool:
    """Return whether a value opens a block of this package."""
    return isinstance(value, blocks)


def bound_by(block: Any) -> Any:
    """Return the value of the `as` target of a block's `with` statement."""
    return block._bound_value()


def run(block: Any, program: Program, names: dict[str, Any] | None = None) -> dict[str | None, Any]:
    """Run a block that was lowered beforehand.

    Args:
        block: the object that the `with` statement opens.
        program: the program that its body was lowered to.
        names: values of the local names that the block itself reads, if all are bound. Most runs
            need no others, and listing all names of a frame costs 1 µs.

    Returns:
        The names that leave the block; under None, the error to raise, if any.
    """
    frame = sys._getframe(1)
    short_way = block._short_way
    found = None
    if names is not None and short_way is not None:
        found = short_way(block, program, frame.f_globals, names)
    if found is None:
        # as `names_around` for the frame of a function, without an extra Python frame
        is_function = frame.f_code.co_flags & CO_OPTIMIZED
        around = frame.f_locals if is_function else names_around(frame)
        if type(around) is not dict:
            around = {**around}
        found = block._finished(program, frame.f_globals, around, frame)
    left: dict[str | None, Any]
    left, failure = found
    if failure is not None:
        left[None] = released(failure)
    try:
        return left
    finally:
        # the failure's traceback may keep this frame
        del left, failure, found
