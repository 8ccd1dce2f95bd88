"""A value while it is on offer: after its tap has it, and before the model goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.transforms.requests import Phase

from .rows import Cut


class Offered(Protocol):
    """A tap, as far as what it offers needs it.

    Attributes:
        place: the place of its module.
        skips: replacements of the output of the visit that begins.
    """

    place: Place
    skips: Any


class Offer:
    """A value that is being offered, and may be replaced while it is.

    The driver makes one and sets its attributes: an `__init__` would cost as much as the rest.

    Attributes:
        tap: where.
        phase: `"inputs"` before a call, `"output"` after it.
        index: which occurrence.
        value: `(args, kwargs)` or the output.
        is_whole: whether every invoke sees all of it, as in a call that a block makes itself.
        handed: containers that were made for some rows: cut, port, container and its leaves.
    """

    __slots__ = ("handed", "index", "is_whole", "phase", "tap", "value")

    tap: Offered
    phase: Phase
    index: int | None
    value: Any
    is_whole: bool
    handed: Sequence[tuple[Cut, str, Any, list[Any]]]
