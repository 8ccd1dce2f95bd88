"""The context of a block that lowering needs besides its statement: file, enclosing scope, flags.

The statement alone does not determine its program: `x` is a parameter if it is local to the
enclosing function, and a global lookup otherwise. Ahead-of-time lowering, live frames and recipes
each gather the same facts from another source.
"""

from __future__ import annotations
import __future__

from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The context of one block.

    Attributes:
        filename: file name for tracebacks.
        lines: lines of the file.
        name: name of the enclosing function, `<module>` at the top level.
        locals: names that are local to the enclosing function.
        is_function: False at module level, in a class body and in `exec`.
        class_name: innermost enclosing class, for the mangling of private names.
        first_argument: first argument of the enclosing function, for `super()`.
        rebound: names that another function may rebind while the block runs.
        flags: the `__future__` features of the file, in the form that `compile` takes.
        is_last: True if nothing of the enclosing function runs after the block, so that the block
            may contain a `return`.
        rewrites_asserts: True if pytest has rewritten the enclosing code, so that the block's
            asserts are rewritten too. Not part of a recipe, as it holds for this process only.
    """

    filename: str
    lines: Sequence[str]
    name: str = "<module>"
    locals: frozenset[str] = frozenset()
    is_function: bool = False
    class_name: str | None = None
    first_argument: str | None = None
    rebound: frozenset[str] = frozenset()
    flags: int = 0
    is_last: bool = False
    rewrites_asserts: bool = False


_FUTURE = 0
for _feature in __future__.all_feature_names:
    _FUTURE |= getattr(__future__, _feature).compiler_flag


def future_flags(code: CodeType) -> int:
    """Return the flags of the `__future__` features that a code object was compiled with."""
    return code.co_flags & _FUTURE
