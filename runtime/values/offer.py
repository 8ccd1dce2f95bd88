"""An offer: a value between the tap that received it and the model's use of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.transforms.requests import Phase

from .rows import Cut, Span


class Offered(Protocol):
    """The members of a tap that an offer uses.

    Attributes:
        place: the place of its module.
        skips: replacements for the output of the visit that begins.
    """

    place: Place
    skips: Any


class View(NamedTuple):
    """Rows that were handed out.

    Attributes:
        whole: the tensor that they are rows of.
        part: the rows.
        is_alias: True if they are rows of a detached alias: see `views`.
        copied: where they are in the whole, if they are a copy.
        version: the number of edits of the copy that are in the whole.
    """

    whole: torch.Tensor
    part: torch.Tensor
    is_alias: bool
    copied: Span | None = None
    version: int = 0


class Handed(NamedTuple):
    """A container narrowed to some rows, that was handed out.

    Attributes:
        cut: how it was narrowed.
        port: the port that it was read from.
        whole: the container that it was narrowed from.
        part: the container.
        leaves: what was in it.
        uncut: the tensors in it that have no rows.
    """

    cut: Cut
    port: str
    whole: Any
    part: Any
    leaves: list[Any]
    uncut: Sequence[torch.Tensor]


class Offer:
    """A value on offer, which machines may replace.

    The driver sets the attributes directly: an `__init__` would cost as much as the rest.

    Attributes:
        tap: the tap that offers it.
        phase: `"inputs"` before a call, `"output"` after it.
        index: occurrence of the visit, None if no request can mean it.
        value: `(args, kwargs)` or the output.
        is_whole: True in a call that a block makes itself: every invoke then sees all rows.
        handed: containers narrowed to some rows.
        split: a tensor, and its rows of each input, if they were made in one call.
        views: rows handed out, by the id of the whole tensor and their start; a second request for
            them is answered with the same view.
    """

    __slots__ = ("handed", "index", "is_whole", "phase", "split", "tap", "value", "views")

    tap: Offered
    phase: Phase
    index: int | None
    value: Any
    is_whole: bool
    handed: Sequence[Handed]
    split: tuple[torch.Tensor, Sequence[Any]] | None
    views: dict[tuple[int, int], View] | None
