"""Spans and edits: a request's tokens in a flat batch, and the rows that its programs changed.

    tokens of the batch    a a a b c c c c
    request c              Span(start=4, count=4, total=8)

A tensor has an axis of tokens if its first axis has the length of the batch, padding included. A
model that vLLM runs by the code of transformers (`model_impl="transformers"`, and architectures
that vLLM has no code of its own for) puts a batch of one before it: there the second axis is that
of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class Span:
    """The tokens `start` to `start + count` of a flat batch of `total`.

    Attributes:
        has_batch: True in a model that puts a batch of one before the tokens.
    """

    start: int
    count: int
    total: int
    has_batch: bool = False

    def part(self, leaf: Any) -> torch.Tensor | None:
        """Return a view of the request's rows; None for a value without an axis of tokens."""
        flat = self.flat(leaf)
        return None if flat is None else flat.narrow(0, self.start, self.count)

    def flat(self, leaf: Any) -> torch.Tensor | None:
        """Return a tensor with the tokens first; None for a value without an axis of tokens."""
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
            return None
        has_batch = self.has_batch and leaf.ndim > 1 and leaf.shape[0] == 1
        # with one token in the batch, [1, 1, width] has it on both axes, and [1, width] on one
        if has_batch and (self.total > 1 or leaf.ndim > 2):
            return leaf[0] if leaf.shape[1] == self.total else None
        return leaf if leaf.shape[0] == self.total else None

    def is_clear(self, leaf: torch.Tensor) -> bool:
        """Return whether only one axis of a tensor can be that of the tokens, as for a module.

        Inside a forward it may be a later one: attention heads may stand before it, and be as many.
        """
        axes = leaf.shape[1:-1] if self.has_batch and leaf.shape[0] == 1 else leaf.shape[:-1]
        return self.total == 1 or list(axes).count(self.total) < 2


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


_ONLY_ROW = torch.zeros(1, dtype=torch.long)


def changed_rows(
    before: torch.Tensor, after: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the rows that differ, on the CPU, and copies of the new rows.

    Args:
        before: the engine's rows.
        after: the new rows.
        residual: the residual to add to the engine's rows; None without one.
    """
    if before.shape[0] == 1:
        # the one token of a decoding step: a comparison would make the host wait for a GPU
        return _ONLY_ROW, after.detach().clone()
    before = before if residual is None else before + residual
    rows = (before != after).reshape(before.shape[0], -1).any(1).nonzero().flatten()
    return rows.cpu(), after[rows]
