"""What lowering a block takes beside its statement: where it stands, and among which names."""

from __future__ import annotations
import __future__

from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known about the place where a block stands.

    Attributes:
        filename: file name for tracebacks.
        lines: lines of the file.
        name: name of the enclosing function, `<module>` at the top level.
        locals: names that are local to the enclosing function.
        is_function: False at module level, in a class body and in `exec`.
        class_name: class that the code stands in, for the mangling of private names.
        flags: the `__future__` features of the file, as `compile` takes them.
        rebound: names that a function beside the block may rebind while the block runs.
        is_last: whether the block is the last statement of the enclosing function.
        rewrites_asserts: whether pytest has rewritten the asserts around, for this process.
        first_argument: first argument of the enclosing function, for `super()`.
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
    """Return the `__future__` features that some code was compiled with."""
    return code.co_flags & _FUTURE
