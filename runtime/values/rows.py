"""Rows: the part of a batch that an invoke sees, and how its writes get back into the batch.

Several prompts run as one batch. An invoke that owns rows 2 and 3 of 5 is handed a view of these
rows (narrow) of every tensor whose first dimension is the batch. An edit in place therefore
reaches the batch directly. A replacement does not: a new tensor is concatenated from the other
rows and the new ones (widen), which keeps autograd correct and leaves tensors saved before alone.

A pipeline of diffusers may run the batch twice in one call, without and with the prompts (its
"classifier-free guidance"): the first dimension is [all rows, all rows again]. An invoke then owns
its rows of each repeat. They are no view, so it is handed a copy, and edits of the copy are put
back into the batch (`views.put_back`).

Tensors whose first dimension is not the batch are handed out whole. Tensors are found in the
containers of torch's pytree (tuples, lists, dicts, named tuples, the outputs of transformers) and
in dataclasses. Any other object, such as a KV cache, is passed to every invoke unchanged, with the
rows of the whole batch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.runtime.errors import WriteError


class Span(NamedTuple):
    """Where rows are in the first dimension of a value.

    Attributes:
        start: the first of them.
        length: their number, in each repeat of the batch.
        period: rows of one repeat of the batch; 0 if the value has the batch once.
    """

    start: int
    length: int
    period: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows `start` to `start + count` of a batch of `total`.

    Attributes:
        number: counts the inputs.
        repeats: how often a tensor may have the batch, one after the other.
        has_sequences: True if lists and arrays have rows, too, as the images of a pipeline.
    """

    start: int
    count: int
    total: int
    number: int = 0
    repeats: int = 1
    has_sequences: bool = False

    def span_in(self, tensor: torch.Tensor, *factors: int) -> Span | None:
        """Return the place of the rows in a tensor's first dimension, None if it is no batch.

        Args:
            tensor: the tensor.
            *factors: rows of the tensor per row of the input that are possible besides one.
        """
        return None if tensor.ndim == 0 else self.span_of(tensor.shape[0], *factors)

    def span_of(self, length: int, *factors: int) -> Span | None:
        """Return the place of the rows in a dimension of a length, None if it is no batch."""
        if length == self.total:
            return Span(self.start, self.count)
        for factor in factors:
            if length == self.total * factor:
                return Span(self.start * factor, self.count * factor)
        if self.repeats > 1:
            for factor in (*factors, 1):
                period = self.total * factor
                if length % period == 0 and 1 < length // period <= self.repeats:
                    return Span(self.start * factor, self.count * factor, period)
        return None


class Cut:
    """How values are narrowed to some rows.

    Attributes:
        rows: the rows.
        factors: rows of a tensor per row of the input that are possible besides one.
    """

    __slots__ = ("factors", "rows")

    def __init__(self, rows: Rows, *factors: int) -> None:
        self.rows = rows
        self.factors = factors

    def span(self, tensor: torch.Tensor) -> Span | None:
        """Return the place of the rows in a tensor, None if it has no rows."""
        return self.rows.span_in(tensor, *self.factors)

    def part(self, tensor: torch.Tensor, span: Span) -> torch.Tensor:
        """Return rows, to be handed to a block: a view, or a copy of those of several repeats."""
        return rows_at(tensor, span)

    def puts_back(self, whole: torch.Tensor, part: torch.Tensor) -> bool:
        """Put the edits of a copy that was handed out back; return False for any other tensor."""
        return False


def pieces_of(tensor: torch.Tensor, span: Span) -> list[torch.Tensor]:
    """Return views of rows, one for each repeat of the batch."""
    starts = range(span.start, tensor.shape[0], span.period) if span.period else (span.start,)
    return [tensor.narrow(0, start, span.length) for start in starts]


def rows_at(tensor: torch.Tensor, span: Span) -> torch.Tensor:
    """Return a view of rows; with several repeats of the batch, a copy of the rows of each."""
    pieces = pieces_of(tensor, span)
    return torch.cat(pieces) if span.period else pieces[0]


def narrow(value: Any, cut: Cut) -> Any:
    """Return the part of a value that belongs to some rows; tensors become views."""

    def part(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            span = cut.span(leaf)
            if span is not None:
                return cut.part(leaf, span)
        elif cut.rows.has_sequences and _is_sequence(leaf):
            span = cut.rows.span_of(len(leaf), *cut.factors)
            if span is not None and not span.period:
                return leaf[span.start : span.start + span.length]
        return with_fields(leaf, lambda _, field: narrow(field, cut))

    if isinstance(value, torch.Tensor):
        return part(value)
    return pytree.tree_map(part, value, is_leaf=_leaf_test(cut))


def _leaf_test(cut: Cut) -> Callable[[Any], bool] | None:
    if not cut.rows.has_sequences:
        return None
    return lambda value: _is_sequence(value) or _is_incomplete(value)


def _is_incomplete(value: Any) -> bool:
    """Return whether a value is an output of diffusers that pytree cannot make again.

    Such a dict leaves out the fields that are None, and its class requires them.
    """
    kind: Any = type(value)
    if not isinstance(value, dict) or not dataclasses.is_dataclass(kind):
        return False
    return any(
        one.default is one.default_factory is dataclasses.MISSING and one.name not in value
        for one in dataclasses.fields(kind)
    )


def _is_sequence(value: Any) -> bool:
    """Return whether a value is a list or an array with an item for each row, as of images."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return type(value) is list and not any(isinstance(one, torch.Tensor) for one in value)


def joined(rows: Sequence[Rows], factor: int, parts: Sequence[Any]) -> Any:
    """Join the parts of all inputs to one value; anything but a tensor is that of the first.

    Args:
        rows: the rows of the parts, in their order.
        factor: rows of the batch per row of the input.
        parts: the parts.
    """
    if not isinstance(parts[0], torch.Tensor) or not parts[0].ndim:
        return parts[0]
    first = rows[0]
    span = first.span_of(first.total * parts[0].shape[0] // first.count, factor)
    if span is None or not span.period:
        return torch.cat([*parts])
    repeats = parts[0].shape[0] // span.length
    chunks = [part.chunk(repeats) for part in parts]
    return torch.cat([chunk for repeat in zip(*chunks, strict=True) for chunk in repeat])


def parts_of(value: Any, counts: Sequence[int], total: int, module: object) -> Sequence[Any] | None:
    """Narrow a value to each input of a batch in one call; None if that is not possible.

    The views of one `split` cost 0.4 µs each in place of 1.7. It is used only with autograd off:
    under autograd such views cannot be edited in place.
    """
    if type(value) is not torch.Tensor or torch.is_grad_enabled() or value.requires_grad:
        return None
    if not value.ndim or value.shape[0] != total:
        return None
    if is_state(value, module) or share_memory(value):
        return None
    parts: Sequence[Any] = value.split(counts)
    return parts


def share_memory(tensor: torch.Tensor) -> bool:
    """Return whether rows of a tensor may overlap in memory; True where that is hard to decide."""
    if tensor.layout is not torch.strided or tensor.is_contiguous() or tensor.shape[0] < 2:
        return False
    step, extent = tensor.stride(0), 1
    for stride, size in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if size < 2:
            continue
        if stride >= step * tensor.shape[0]:
            # all rows lie between two steps along this dimension, as in a transposed tensor
            break
        extent += stride * (size - 1)
    return bool(step < extent)


def is_state(tensor: torch.Tensor, module: object) -> bool:
    """Return whether a tensor is a parameter or a buffer, or a view of one, and so has no rows.

    A view expanded over the batch has rows.
    """
    base = tensor if tensor._base is None else tensor._base
    if base is not tensor and tensor.ndim and tensor.stride(0) == 0:
        return False
    if isinstance(base, nn.Parameter):
        return True
    buffers = module._buffers.values() if isinstance(module, nn.Module) else ()
    return any(base is one for one in buffers)


def with_fields(value: Any, change: Callable[[str, Any], Any]) -> Any:
    """Return a dataclass with changed fields, or anything else as it is."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    old = {one.name: getattr(value, one.name, None) for one in dataclasses.fields(value)}
    new = {name: change(name, field) for name, field in old.items()}
    if all(new[name] is field for name, field in old.items()):
        return value
    changed = copy.copy(value)
    for name, field in new.items():
        if not isinstance(changed, dict):
            object.__setattr__(changed, name, field)
        elif field is not old[name]:
            # an output that is a dict, too, keeps both the same
            setattr(changed, name, field)
    return changed


def leaves_of(value: Any) -> list[Any]:
    """List the leaves of a value, those in containers and in dataclasses."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for one in dataclasses.fields(leaf):
                found.extend(leaves_of(getattr(leaf, one.name, None)))
        else:
            found.append(leaf)
    return found


def widen(whole: Any, part: Any, cut: Cut, shared: list[Any] | None = None) -> Any:
    """Return a value with the rows of a cut replaced by `part`.

    Args:
        whole: the value.
        part: what the rows of it are replaced by.
        cut: the rows.
        shared: if given, tensors without rows are replaced whole, and are added to it.

    Raises:
        WriteError: the part has another structure, shape, dtype or device than its rows, or
            replaces a value without rows.
    """
    is_leaf = _leaf_test(cut)
    leaves, structure = pytree.tree_flatten(whole, is_leaf)
    parts, part_structure = pytree.tree_flatten(part, is_leaf)
    if structure != part_structure:
        raise WriteError(
            f"the value written has the structure {part_structure}, its place {structure}; "
            "write a value of the same structure"
        )
    pairs = zip(leaves, parts, strict=True)
    spliced = [_splice(*pair, cut, shared) for pair in pairs]
    return pytree.tree_unflatten(spliced, structure)


def _splice(whole: Any, part: Any, cut: Cut, shared: list[Any] | None) -> Any:
    if part is whole:
        return whole
    if dataclasses.is_dataclass(whole) and type(part) is type(whole):
        return with_fields(
            whole, lambda name, field: widen(field, getattr(part, name, None), cut, shared)
        )
    span = cut.span(whole) if isinstance(whole, torch.Tensor) else None
    if span is None:
        is_tensor = isinstance(whole, torch.Tensor)
        if shared is not None and (is_tensor or part != whole):
            if is_tensor and not _is_alike(part, whole):
                raise WriteError(
                    f"the value written is {describe(part)}, and replaces {describe(whole)} for "
                    "all invokes; make it fit"
                )
            shared.append(whole)
            return part
        if is_tensor or part != whole:
            raise WriteError(
                "the value to be replaced has no rows, and this invoke owns "
                f"{cut.rows.count} of {cut.rows.total} rows; write it from an invoke without an "
                "input, which sees all rows"
            )
        return whole
    if isinstance(part, torch.Tensor) and cut.puts_back(whole, part):
        return whole
    mine = rows_at(whole, span)
    if not isinstance(part, torch.Tensor):
        raise WriteError(
            f"the value written is {type(part).__name__}, its place holds a tensor of shape "
            f"{tuple(mine.shape)}; write a tensor"
        )
    if _is_same_view(part, mine):
        return whole
    if not _is_alike(part, mine):
        raise WriteError(
            f"the value written is {describe(part)}, the rows it replaces are {describe(mine)}; "
            "make it fit, since the other rows of the batch keep theirs"
        )
    made, done = [], 0
    for number in range(part.shape[0] // span.length):
        start = span.start + number * span.period
        made.append(whole.narrow(0, done, start - done))
        made.append(part.narrow(0, number * span.length, span.length))
        done = start + span.length
    made.append(whole.narrow(0, done, whole.shape[0] - done))
    return torch.cat([piece for piece in made if piece.shape[0]])


def _is_alike(part: Any, mine: torch.Tensor) -> bool:
    return (
        isinstance(part, torch.Tensor)
        and part.shape == mine.shape
        and part.dtype == mine.dtype
        and part.device == mine.device
    )


def _is_same_view(part: torch.Tensor, mine: torch.Tensor) -> bool:
    if part.requires_grad or mine.requires_grad:
        # a detached view is not the same
        is_of_same = part._base is not None and part._base is mine._base
    else:
        is_of_same = part.untyped_storage()._cdata == mine.untyped_storage()._cdata
    return (
        is_of_same
        and part.shape == mine.shape
        and part.dtype == mine.dtype
        and part.stride() == mine.stride()
        and part.storage_offset() == mine.storage_offset()
    )


def describe(value: object) -> str:
    """Describe a value for a message: its shape, dtype and device if it is a tensor."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return f"a {type(value).__name__}"
