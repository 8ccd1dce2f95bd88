"""Views: the rows that invokes are handed of a tensor, and how they stay part of the model.

    h = model.transformer.h[3].output          # in each of two invokes: its rows
    h.retain_grad()
    torch.autograd.grad(loss, h)
    h.requires_grad_(True)                     # under frozen parameters

Under autograd a view of some rows is no ancestor of what the model computes from the whole tensor,
so none of these would find a gradient. Where a block keeps such a view, the model therefore goes on
with a tensor that is put together of the views and of the rows that nobody was handed. That is done
when all blocks have had the value, so that what they edit in place meanwhile is in it. What they
edit later is copied into it as soon as the block stops to wait.

Rows share no memory. A tensor of one row that is expanded over the batch, or one whose rows overlap
in another way, is copied before an invoke is handed a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef

from .rows import Cut, Rows, is_state, share_memory, with_fields

if TYPE_CHECKING:
    from .machine import Machine
    from .offers import Offer


class _Whole:
    """A tensor that is being offered, and the views of it that invokes were handed."""

    __slots__ = ("offer", "parts", "tensor")

    def __init__(self, offer: Offer, tensor: torch.Tensor) -> None:
        self.offer = offer
        self.tensor = tensor
        self.parts: dict[int, torch.Tensor] = {}

    def pieces(self, start: int, stop: int) -> list[torch.Tensor]:
        """Return the rows from start to stop: views that were handed out, and views of the rest."""
        found = []
        for first in sorted(self.parts):
            part = self.parts[first]
            after = first + part.shape[0]
            if start <= first and after <= stop:
                if start < first:
                    found.append(self.tensor.narrow(0, start, first - start))
                found.append(part)
                start = after
        if start < stop:
            found.append(self.tensor.narrow(0, start, stop - start))
        return found

    def forget_unused(self) -> None:
        """Keep the views that somebody can still ask for a gradient."""
        for first in list(self.parts):
            part = self.parts[first]
            if part.retains_grad or part._backward_hooks:
                continue
            reference = TensorWeakRef(part)
            del self.parts[first], part
            kept = reference()
            if kept is not None:
                self.parts[first] = kept


class Joined:
    """A tensor that was put together of views, for as long as a block may still edit one."""

    __slots__ = ("_joined", "_parts", "_version", "_whole")

    def __init__(
        self, whole: torch.Tensor, parts: Mapping[int, torch.Tensor], joined: torch.Tensor
    ) -> None:
        self._whole = TensorWeakRef(whole)
        self._joined = TensorWeakRef(joined)
        self._parts = {first: TensorWeakRef(part) for first, part in parts.items()}
        self._version = whole._version

    def begin(self) -> bool:
        """Take note of the edits that the model has made; return whether there can be others."""
        whole = self._whole()
        if whole is None or self._joined() is None:
            return False
        self._version = whole._version
        return True

    def look(self, machine: Machine) -> bool:
        """Copy what a machine has edited; return whether there can be other edits."""
        whole, joined = self._whole(), self._joined()
        if whole is None or joined is None:
            return False
        if whole._version == self._version:
            return True
        self._version = whole._version
        if machine.rows is None:
            # it may have edited any row
            joined.copy_(whole)
        for first, reference in self._parts.items():
            part = reference()
            if part is not None:
                joined.narrow(0, first, part.shape[0]).copy_(part)
        return True


class Views:
    """The views of tensors that are being offered."""

    def __init__(self) -> None:
        self._wholes: list[_Whole] = []

    def part(self, offer: Offer, tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
        """Return a view of some rows: the same one whenever it is asked for."""
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.narrow(0, start, length)
        whole = self._find(tensor)
        if whole is None:
            whole = _Whole(offer, tensor)
            self._wholes.append(whole)
        part = whole.parts.get(start)
        if part is None:
            part = whole.parts[start] = tensor.narrow(0, start, length)
        return part

    def pieces(self, tensor: torch.Tensor, start: int, stop: int) -> list[torch.Tensor]:
        """Return rows of a tensor, as the views that were handed out where there are any."""
        whole = self._find(tensor)
        if whole is not None:
            return whole.pieces(start, stop)
        return [tensor.narrow(0, start, stop - start)] if start < stop else []

    def settle(self, offer: Offer) -> list[Joined]:
        """Let the model go on with the views that are kept, once an offer is over."""
        mine = [one for one in self._wholes if one.offer is offer]
        self._wholes = [one for one in self._wholes if one.offer is not offer]
        joined: dict[int, tuple[_Whole, torch.Tensor]] = {}
        for whole in mine:
            whole.forget_unused()
            if any(part.requires_grad for part in whole.parts.values()):
                tensor = torch.cat(whole.pieces(0, whole.tensor.shape[0]))
                joined[id(whole.tensor)] = whole, tensor
        if not joined:
            return []
        # another value may have been written in the place of some of them
        found: dict[int, Joined] = {}

        def in_place(leaf: Any) -> Any:
            if id(leaf) not in joined:
                return leaf
            whole, tensor = joined[id(leaf)]
            found[id(leaf)] = Joined(whole.tensor, whole.parts, tensor)
            return tensor

        offer.value = with_leaves(offer.value, in_place)
        return list(found.values())

    def _find(self, tensor: torch.Tensor) -> _Whole | None:
        return next((one for one in self._wholes if one.tensor is tensor), None)


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with other leaves in its containers, itself where none is another."""
    if isinstance(value, torch.Tensor):
        return change(value)
    is_changed = False

    def one(leaf: Any) -> Any:
        nonlocal is_changed
        new = with_fields(leaf, lambda _, field: with_leaves(field, change))
        if isinstance(new, torch.Tensor):
            new = change(new)
        is_changed = is_changed or new is not leaf
        return new

    changed = pytree.tree_map(one, value)
    return changed if is_changed else value


def separated(value: Any, cut: OfferCut) -> Any:
    """Copy the tensors whose rows share memory; return the value itself where none does."""
    if not cut.may_copy:
        return value
    copies: dict[int, torch.Tensor] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim or leaf.is_contiguous():
            return leaf
        if cut.span(leaf) is None or not share_memory(leaf):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.clone(memory_format=torch.contiguous_format)
        return copies[id(leaf)]

    return with_leaves(value, copied)


class OfferCut(Cut):
    """How a value is cut while it is offered.

    Attributes:
        whole: the tensors without rows that a value was found to have.
        may_copy: whether a copy of a tensor may take its place in the model.
    """

    __slots__ = ("_module", "_offer", "_views", "may_copy", "whole")

    def __init__(
        self,
        rows: Rows,
        factor: int,
        offer: Offer,
        views: Views | None,
        *,
        may_copy: bool,
    ) -> None:
        super().__init__(rows, factor)
        self.may_copy = may_copy
        self._offer = offer
        self._views = views
        self._module = offer.tap.place._module
        self.whole: list[torch.Tensor] = []

    def span(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        """Return start and length of the rows in a tensor, None if it has no rows."""
        span = self.rows.span_in(tensor, *self.factors)
        if span is not None and not is_state(tensor, self._module):
            return span
        self.whole.append(tensor)
        return None

    def part(self, tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
        """Return a view of rows, to be handed to a block."""
        if self._views is None:
            return tensor.narrow(0, start, length)
        return self._views.part(self._offer, tensor, start, length)

    def pieces(self, tensor: torch.Tensor, start: int, stop: int) -> list[torch.Tensor]:
        """Return views of the rows that stay as they are beside replaced ones."""
        if self._views is None:
            return super().pieces(tensor, start, stop)
        return self._views.pieces(tensor, start, stop)
