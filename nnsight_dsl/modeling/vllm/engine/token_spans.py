"""Spans and edits: a request's tokens in a flat batch, and the rows that its programs changed.

    tokens of the batch    a a a b c c c c
    request c              Span(start=4, count=4, total=8)

A tensor has an axis of tokens if its first axis has the length of the batch, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class Span:
    """The tokens `start` to `start + count` of a flat batch of `total`."""

    start: int
    count: int
    total: int

    def part(self, leaf: Any) -> torch.Tensor | None:
        """Return a view of the request's rows; None for a value without an axis of tokens."""
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == self.total:
            return leaf.narrow(0, self.start, self.count)
        return None


@dataclass(slots=True)
class Edit:
    """Rows of a value that a request has changed, kept to repeat the change after preemption.

    Attributes:
        where: the path or number of the leaf in the value.
        residual: the leaf that was set to 0 in the same rows; None without one.
        rows: indices of the changed rows, counted from `first`, on the CPU.
        values: the new rows, on the device of the value; never written to.
        is_in_place: True if the edit was made in the engine's own tensor.
        first: position in the request of row 0; set by `Run.taken`.
    """

    where: Any
    residual: Any
    rows: torch.Tensor
    values: torch.Tensor
    is_in_place: bool
    first: int = 0
