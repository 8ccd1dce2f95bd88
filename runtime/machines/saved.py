"""The values that a block has saved, and the names that may leave it.

A name leaves the outermost block if at the end of the block it is bound to a saved object.
Objects are compared by identity. CPython shares small integers, strings and the like, so for
those the name counts too: it must have been assigned straight from a `save` call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight_dsl.transforms.program import Program

_SHARED_TYPES = (int, float, bool, str, bytes, type(None))


class Saved(dict[int, object]):
    """The objects that the blocks of one run have saved, by identity.

    They are kept alive, so that their identities are not reused.
    """

    __slots__ = ()

    def add(self, value: object) -> None:
        self[id(value)] = value

    def leaving(self, names: Mapping[str, Any], program: Program) -> dict[str, Any]:
        """Return the names bound by a program that may leave, with their values."""
        left: dict[str, Any] = {}
        if self:
            saved_names = program.saved_names
            for name, value in names.items():
                if id(value) in self and (
                    name in saved_names
                    or (name in program.bound and not isinstance(value, _SHARED_TYPES))
                ):
                    left[name] = value
        return left
