"""What a block has saved, and which names may leave it.

A name leaves the outermost block if at the end of the block it is bound to an object that was
saved. Objects are compared by identity. CPython shares small integers, strings and the like
between all who use them, so for those the name counts too: it must have been assigned straight
from a `save` call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHARED_TYPES = (int, float, bool, str, bytes, type(None))


class Saved:
    """The objects that the blocks of one run have saved.

    Attributes:
        objects: by identity; they are kept alive, so that no other one can take the identity of
            one of them.
    """

    __slots__ = ("objects",)

    def __init__(self) -> None:
        self.objects: dict[int, object] = {}

    def add(self, value: object) -> None:
        self.objects[id(value)] = value

    def clear(self) -> None:
        """Let go of all of them, once it is settled what leaves."""
        self.objects.clear()

    def leaving(self, names: Mapping[str, Any], saved_names: frozenset[str]) -> dict[str, Any]:
        """Return those names that may leave, with their values."""
        objects, left = self.objects, {}
        if objects:
            for name, value in names.items():
                if id(value) in objects and (
                    name in saved_names or not isinstance(value, _SHARED_TYPES)
                ):
                    left[name] = value
        return left
