"""Slots: the requests with programs in the forward that is running.

A forward computes one flat batch of tokens. A slot says which of them belong to one request:

    tokens of the batch    a a a b c c c c
    slot of c              span: start 4, count 4

Some of a request's tokens may be computed for the second time, after preemption: those are `again`,
and the new ones, which programs are offered, are `span`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from nnsight_dsl.modeling.vllm.engine.token_spans import Span


class Programs(Protocol):
    """The programs of a request, as far as a slot needs them; `Run` in `request_run.py`."""

    is_over: bool

    @property
    def driver(self) -> object | None:
        """The driver of the programs; its id is the key of the slot."""


RunT = TypeVar("RunT", bound=Programs)
TapT = TypeVar("TapT")


class Slot(Generic[RunT]):
    """One request in the forward that is running.

    Attributes:
        run: its programs.
        key: id of its driver, the key under which taps keep their part for this request.
        first: position in the request of its first token in this forward.
        again: its tokens that were offered before and are recomputed after preemption.
        span: its new tokens.
        is_piece: True if the prompt continues in a later forward (chunked prefill).
        is_offered: True if programs are offered values in this forward: the request has new
            tokens, and they complete its prompt or follow it.
        is_special: True if the slot needs more than an offer: its values are kept (`is_piece`), or
            earlier edits are repeated (`again`).
    """

    __slots__ = ("again", "first", "is_offered", "is_piece", "is_special", "key", "run", "span")

    def __init__(self, run: RunT, first: int, again: Span, span: Span, is_piece: bool) -> None:
        self.run = run
        self.key = id(run.driver)
        self.first = first
        self.again = again
        self.span = span
        self.is_piece = is_piece
        self.is_offered = span.count > 0 and not is_piece
        self.is_special = is_piece or again.count > 0

    @property
    def first_new(self) -> int:
        """Position in the request of the first new token."""
        return self.first + self.again.count


def visits_among(
    slots: Sequence[Slot[RunT]], taps: Mapping[int, TapT]
) -> list[tuple[Slot[RunT], TapT]]:
    """List the requests in a forward that address a place, each with its tap on the place.

    Args:
        slots: the requests in the forward.
        taps: the taps on the place, by the key of their request's slot.
    """
    return [
        (slot, tap)
        for slot in slots
        if not slot.run.is_over and (tap := taps.get(slot.key)) is not None
    ]
