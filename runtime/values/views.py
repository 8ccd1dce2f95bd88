"""Views: the rows of a tensor that invokes are handed, and their gradients.

    h = model.transformer.h[3].output          # in each of two invokes: its rows
    h.retain_grad()
    torch.autograd.grad(loss, h)
    h.requires_grad_(True)                     # under frozen parameters

To autograd such a view is computed from the whole tensor, and is not an ancestor of the model's
later values. It cannot be made one: the model may have used the tensor before, as in a residual
stream, and may hold it elsewhere. So each view is noted with its whole tensor, and its gradient is
a part of the whole tensor's, wherever it is asked for: from the first noted view on,
`torch.autograd.grad`, `torch.autograd.backward` (which `Tensor.backward` calls), `retain_grad` and
`register_hook` are replaced by functions that handle noted views. For all other tensors they
behave as before.

Under frozen parameters the tensor has no gradient. If a block asks for one of its rows, the tensor
is rebuilt from its rows in place.

Rows must not share memory. A tensor of one row that is expanded over the batch, or one whose rows
overlap in another way, is copied before an invoke is handed a part of it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from nnsight_dsl.runtime.errors import StaleEditError

from .offer import Offer, View
from .rows import (
    Cut,
    Rows,
    Span,
    is_state,
    leaves_of,
    pieces_of,
    rows_at,
    share_memory,
    with_fields,
)

_views: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_retained: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_grad = torch.autograd.grad
_backward = torch.autograd.backward
_retain_grad = torch.Tensor.retain_grad
_register_hook = torch.Tensor.register_hook


def find_whole(view: torch.Tensor) -> tuple[torch.Tensor, int, int] | None:
    """Return the whole tensor of a noted view, and the view's start and length; None for others."""
    found: tuple[torch.Tensor, int, int] | None = _views.get(view)
    return found


def _note(view: torch.Tensor, whole: torch.Tensor, start: int, length: int) -> None:
    if torch.autograd.grad is not grad:
        _install()
    _views[view] = (whole, start, length)


def _install() -> None:
    """Replace torch's functions that compute, retain and hook gradients."""
    torch.autograd.grad = grad
    torch.autograd.backward = backward
    torch.Tensor.retain_grad = retain_grad
    torch.Tensor.register_hook = register_hook


@functools.wraps(_grad)
def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute gradients as torch does; those of noted views from those of their whole tensors."""
    names = list(inputs) if isinstance(inputs, Mapping) else None
    if names is not None:
        asked = [inputs[name] for name in names]
    else:
        is_many = isinstance(inputs, (list, tuple)) and not hasattr(inputs, "_fields")
        asked = list(inputs) if is_many else [inputs]
    noted = [find_whole(one) if isinstance(one, torch.Tensor) else None for one in asked]
    handles: list[Any] = []
    try:
        _put_hooks(handles)
        if not any(noted):
            return _grad(outputs, inputs, *args, **kwargs)
        wholes = [
            one if found is None else found[0] for one, found in zip(asked, noted, strict=True)
        ]
        gradients = _grad(outputs, wholes, *args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    # one gradient for each of a batch of outputs
    axis = 1 if kwargs.get("is_grads_batched") or args[5:6] == (True,) else 0
    parts = tuple(
        one if found is None or one is None else one.narrow(axis, found[1], found[2])
        for one, found in zip(gradients, noted, strict=True)
    )
    return parts if names is None else dict(zip(names, parts, strict=True))


@functools.wraps(_backward)
def backward(*args: Any, **kwargs: Any) -> Any:
    """Compute gradients as torch does, and set those of noted views that retain them."""
    handles: list[Any] = []
    wholes: list[torch.Tensor] = []
    try:
        _put_hooks(handles)
        inputs = kwargs.get("inputs")
        if inputs is not None:
            kwargs["inputs"] = _with_wholes(inputs, wholes, handles)
        return _backward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for whole in wholes:
            whole.grad = None


def _with_wholes(inputs: Any, wholes: list[torch.Tensor], handles: list[Any]) -> Any:
    """Return the inputs of a backward pass with noted views replaced by their whole tensors."""
    asked = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    if isinstance(inputs, Mapping):
        asked = list(inputs.values())
    noted = [find_whole(one) if isinstance(one, torch.Tensor) else None for one in asked]
    if not any(noted):
        return inputs
    for number, found in enumerate(noted):
        if found is None:
            continue
        if asked[number] not in _retained:
            _keep_once(asked[number], found, handles)
        asked[number] = found[0]
        if not found[0].is_leaf and not found[0].retains_grad:
            wholes.append(found[0])
    return asked


@functools.wraps(_retain_grad)
def retain_grad(self: torch.Tensor) -> None:
    """Retain a tensor's gradient as torch does; that of a noted view, from the next pass on."""
    _retain_grad(self)
    found = find_whole(self)
    if found is not None:
        _retained[self] = found


@functools.wraps(_register_hook)
def register_hook(self: torch.Tensor, hook: Callable[[torch.Tensor], Any]) -> Any:
    """Register a hook as torch does; for a noted view, on its part of the whole's gradient."""
    found = find_whole(self)
    if found is None:
        return _register_hook(self, hook)
    whole, start, length = found

    def on_part(gradient: torch.Tensor) -> torch.Tensor | None:
        new = hook(gradient.narrow(0, start, length))
        if new is None:
            return None
        changed = gradient.clone()
        changed.narrow(0, start, length).copy_(new)
        return changed

    return _register_hook(whole, on_part)


def _put_hooks(handles: list[Any]) -> None:
    """Let a backward pass set the gradients of noted views that retain them.

    The hooks are registered for the pass only: a retained gradient follows the tensor through an
    edit in place, and a hook does not.
    """
    if not _retained:
        return
    for view, found in list(_retained.items()):
        _keep_once(view, found, handles)


def _keep_once(
    view: torch.Tensor, found: tuple[torch.Tensor, int, int], handles: list[Any]
) -> None:
    whole, start, length = found
    if whole.requires_grad:
        with warnings.catch_warnings():
            # reading .grad of a non-leaf tensor warns if it has none and does not retain one
            warnings.simplefilter("ignore", UserWarning)
            before = view.grad
        keep = functools.partial(_keep, TensorWeakRef(view), before, start, length)
        handles.append(_register_hook(whole, keep))


def _keep(
    view: TensorWeakRef,
    before: torch.Tensor | None,
    start: int,
    length: int,
    gradient: torch.Tensor,
) -> None:
    kept = view()
    if kept is not None:
        # autograd itself has kept the part that came through the view, as from a loss on it
        part = gradient.narrow(0, start, length)
        kept.grad = part.clone() if before is None else before + part


def settle(offer: Offer) -> None:
    """Rebuild the tensors of a finished offer from those of their rows that need a gradient.

    These are tensors without a gradient, whose rows were handed out as views of a detached alias:
    another tensor to autograd, in the same memory.
    """
    put_back(offer)
    asked = {
        key: view
        for key, view in (offer.views or {}).items()
        if view.is_alias and view.part.requires_grad
    }
    for whole in {id(view.whole): view.whole for view in asked.values()}.values():
        parts = {start: view.part for (of, start), view in asked.items() if of == id(whole)}
        pieces, done = [], 0
        for first in sorted(parts):
            pieces.append(whole.detach().narrow(0, done, first - done))
            pieces.append(parts[first])
            done = first + parts[first].shape[0]
        pieces.append(whole.detach().narrow(0, done, whole.shape[0] - done))
        made = torch.cat(pieces)
        # the values are unchanged, so tensors saved by autograd are still valid
        with torch.autograd._unsafe_preserve_version_counter(whole):
            whole.copy_(made)


def put_back(offer: Offer) -> None:
    """Put the edits of copies, of rows in several repeats of the batch, into the whole tensors.

    Raises:
        StaleEditError: such a tensor was replaced before its copy was edited.
    """
    for key, view in (offer.views or {}).items():
        span = view.copied
        # tensors made in inference mode do not count their edits
        if span is None or (not view.part.is_inference() and view.part._version == view.version):
            continue
        if view.part.is_inference() and torch.equal(view.part, rows_at(view.whole, span)):
            continue
        if not any(one is view.whole for one in leaves_of(offer.value)):
            raise StaleEditError(
                "rows of a tensor were edited in place after the tensor had been replaced, so the "
                "edit would have no effect; read the location again after the replacement"
            )
        pieces = pieces_of(view.whole, span)
        for piece, new in zip(pieces, view.part.chunk(len(pieces)), strict=True):
            piece.copy_(new)
        if not view.part.is_inference() and offer.views is not None:
            offer.views[key] = view._replace(version=view.part._version)


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Map the tensors of a value; return the value itself if none changes."""
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
    """Copy the tensors whose rows share memory; return the value itself if there are none."""
    if not cut.may_copy:
        return value
    copies: dict[int, torch.Tensor] = {}

    def copied(leaf: torch.Tensor) -> torch.Tensor:
        if not leaf.ndim or leaf.is_contiguous():
            return leaf
        if cut.span(leaf) is None or not share_memory(leaf):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.clone(memory_format=torch.contiguous_format)
        return copies[id(leaf)]

    return with_leaves(value, copied)


class OfferCut(Cut):
    """How a value on offer is narrowed.

    Attributes:
        whole: tensors without rows that `span` has met.
        has_copied: True once a part was a copy, whose edits are to be put back.
        may_copy: False while the offer is read-only: no tensor of it may be replaced by a copy.
        may_alias: True if rows of a tensor without a gradient are those of a detached alias, which
            a block may ask for one; `settle` then ends the offer.
    """

    __slots__ = ("_may_alias", "_module", "_offer", "has_copied", "may_copy", "whole")

    def __init__(
        self,
        rows: Rows,
        factor: int,
        offer: Offer,
        *,
        may_copy: bool,
        may_alias: bool,
    ) -> None:
        super().__init__(rows, factor)
        self.may_copy = may_copy
        self._may_alias = may_alias
        self._offer = offer
        self._module = offer.tap.place._module
        self.whole: list[torch.Tensor] = []
        self.has_copied = False

    def span(self, tensor: torch.Tensor) -> Span | None:
        """Return the place of the rows in a tensor, None if it has no rows."""
        span = self.rows.span_in(tensor, *self.factors)
        if span is not None and not is_state(tensor, self._module):
            return span
        self.whole.append(tensor)
        return None

    def part(self, tensor: torch.Tensor, span: Span) -> torch.Tensor:
        """Return rows, to be handed to a block; the same tensor each time."""
        offer = self._offer
        if offer.split is not None and offer.split[0] is tensor:
            return offer.split[1][self.rows.number]
        if offer.views is None:
            offer.views = {}
        key = id(tensor), span.start
        view = offer.views.get(key)
        if view is None:
            view = offer.views[key] = self._view(tensor, span)
        self.has_copied = self.has_copied or view.copied is not None
        return view.part

    def puts_back(self, whole: torch.Tensor, part: torch.Tensor) -> bool:
        """Put the edits of a copy that was handed out back; return False for any other tensor."""
        views = self._offer.views or {}
        if any(
            view.part is part and view.copied and view.whole is whole for view in views.values()
        ):
            put_back(self._offer)
            return True
        return False

    def _view(self, tensor: torch.Tensor, span: Span) -> View:
        start, length, period = span
        if period:
            part = super().part(tensor, span)
            version = 0 if part.is_inference() else part._version
            return View(tensor, part, is_alias=False, copied=span, version=version)
        if tensor.requires_grad:
            part = tensor.narrow(0, start, length)
            _note(part, tensor, start, length)
            return View(tensor, part, is_alias=False)
        is_alias = self._may_alias and (tensor.is_floating_point() or tensor.is_complex())
        part = (tensor.detach() if is_alias else tensor).narrow(0, start, length)
        return View(tensor, part, is_alias)
