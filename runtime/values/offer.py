"""An offer: a value between the tap that received it and the model's use of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.transforms.requests import Phase

from .rows import Cut


class Offered(Protocol):
    """The members of a tap that an offer uses.

    Attributes:
        place: the place of its module.
        skips: replacements for the output of the visit that begins.
    """

    place: Place
    skips: Any


class Offer:
    """A value on offer, which machines may replace.

    The driver sets the attributes directly: an `__init__` would cost as much as the rest.

    Attributes:
        tap: the tap that offers it.
        phase: `"inputs"` before a call, `"output"` after it.
        index: occurrence of the visit, None if no request can mean it.
        value: `(args, kwargs)` or the output.
        is_whole: True in a call that a block makes itself: every invoke then sees all rows.
        handed: containers narrowed to some rows: cut, port, container and its leaves.
    """

    __slots__ = ("handed", "index", "is_whole", "phase", "tap", "value")

    tap: Offered
    phase: Phase
    index: int | None
    value: Any
    is_whole: bool
    handed: Sequence[tuple[Cut, str, Any, list[Any]]]
