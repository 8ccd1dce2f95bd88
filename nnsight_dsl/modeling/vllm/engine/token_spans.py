"""Where a request's tokens are in a flat batch, and which of their rows it has changed."""

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
        """Return the request's part of a tensor, None of what has no axis of tokens."""
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == self.total:
            return leaf.narrow(0, self.start, self.count)
        return None


@dataclass(slots=True)
class Edit:
    """Rows of a value that a request has changed, so that they can be changed again.

    Attributes:
        where: the leaf of the value.
        residual: the leaf that is 0 in those rows from then on, None for none.
        rows: which of the request's tokens, on the CPU.
        values: what those rows were given; never written to.
        is_in_place: whether the engine's own tensor was edited.
        first: the position in the request from which rows count.
    """

    where: Any
    residual: Any
    rows: torch.Tensor
    values: torch.Tensor
    is_in_place: bool
    first: int = 0
