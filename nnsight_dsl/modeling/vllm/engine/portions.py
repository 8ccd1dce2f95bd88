"""Portions: one request's view of a value in the engine.

vLLM runs the tokens of all requests as one flat axis, and some of its modules return more than the
modules of transformers do. A location has the same meaning in both, so a `Portion` presents

* the tokens of its request only, with a batch dimension: `[tokens, width]` as `[1, tokens, width]`;
* `hidden + residual` for a decoder layer, which takes and returns the two apart so that the next
  norm can fuse the addition. A write sets `hidden` to the new value and the residual to 0, so that
  the sum is exact;
* the tensor alone for a linear layer, which returns `(output, bias)` and leaves the addition to the
  caller, and for a fused norm, which returns the sum beside its output;
* as `.input`, the hidden states, also of a layer that takes the positions first.

`.inputs` are all arguments as vLLM passes them, cut to the request's tokens.

    tokens a a b b b, output of layer 3: [5, width]
    portion.seen("output")            # request b: a copy of rows 2 to 4, [1, 3, width]
    portion.put("output", new)        # checks shape, dtype, device and structure
    value = portion.finished()        # the engine's value, with the rows of b replaced

A program is handed copies, because kernels of the engine reuse buffers that they returned earlier.
The copies are made outside of inference mode, where tensors have version counters: a changed
version means that the program edited the copy in place, and the edit is written back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from nnsight_dsl.modeling.vllm.engine.forms import FIRST, MAIN, SUM, WHOLE, argument_at, output_form
from nnsight_dsl.modeling.vllm.engine.token_spans import Edit, Span, changed_rows
from nnsight_dsl.runtime.errors import EngineError, InternalError, NotCalledError, WriteError
from nnsight_dsl.runtime.values.elements import misfit


class Ranks(Protocol):
    """The ranks that hold a part of a value; `RankedVisit` in `ranks.py`."""

    def whole(self, value: Any, where: Any, part: torch.Tensor) -> torch.Tensor:
        """Join a request's rows from the parts of all ranks."""

    def shape(self, where: Any, part: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the joined rows."""

    def written(self, where: Any, new: torch.Tensor, edited: bool) -> torch.Tensor:
        """Write joined rows on the other ranks; return the part of this one."""


class Portion:
    """One request's view of a value, and the way back for its edits.

    Args:
        module: the module whose input or output the value is.
        value: `(args, kwargs)` or the output, with the tokens of all requests.
        span: the request's tokens.
        fresh: ids of tensors in the value that are copies already, made for a write in this visit.
            Shared by all portions of a visit; only `_own_part` adds to it.
        phase: `"inputs"` or `"output"`.
        ranks: the other ranks that hold a part of the value; None if the model is on one device.
        weights: addresses of the storages of the model's weights; None if they are not known, as
            on the ranks that follow.
        is_operation: True for the value of an operation. Portions of operations are never joined
            from ranks.
        copy: the program's copy of an output, if `copies_of` has made it already.

    Attributes:
        is_edited: True once a write has changed the engine's value.
        edits: the rows that writes have changed, to be repeated if the request is recomputed.
        earlier: by port, the values of the prompt's earlier pieces, to put before this one.
        is_read_only: True if a write is an error, for a program that was sent as one that only
            reads; set by `Run.serve`.
    """

    __slots__ = (
        "_copy",
        "_fresh",
        "_is_inputs",
        "_is_operation",
        "_module",
        "_ranks",
        "_seen",
        "_span",
        "_value",
        "_weights",
        "earlier",
        "edits",
        "is_edited",
        "is_read_only",
    )

    def __init__(
        self,
        module: Any,
        value: Any,
        span: Span,
        fresh: set[int],
        phase: str,
        ranks: Ranks | None = None,
        weights: frozenset[int] | None = None,
        copy: torch.Tensor | None = None,
        *,
        is_operation: bool = False,
    ) -> None:
        self._copy = copy
        self._weights = weights
        self._is_operation = is_operation
        self._ranks = ranks
        self._module = module
        self._value = value
        self._span = span
        self._fresh = fresh
        self._is_inputs = phase == "inputs"
        # the port that was handed out last, its value and its leaves; None once its edits are taken
        self._seen: tuple[str, Any, list[_Handed]] | None = None
        self.edits: list[Edit] = []
        self.earlier: Mapping[str, Sequence[Any]] = {}
        self.is_read_only = False
        self.is_edited = False

    def seen(self, port: str) -> Any:
        """Return the value that the request's programs see at a port.

        The same object is returned until another port is asked for. Edits of the earlier port's
        value are taken first, so that both ports agree.

        Raises:
            EngineError: a tensor of the value belongs to all requests, and no part of it is this
                one's.
        """
        if self._seen is not None and self._seen[0] == port:
            return self._seen[1]
        self._take_edits()
        handed: list[_Handed] = []
        if port == "inputs" or not self._is_inputs:
            form = WHOLE if self._is_inputs else output_form(self._module, self._value)
            value = self._presented(self._value, form, handed)
        else:
            value = self._presented_input(handed)
        if self._is_operation and not any(one.write for one in handed):
            raise EngineError(
                "what this operation is given or returns does not have the tokens as its first "
                "axis, so no part of it is this request's; read another operation, or the output "
                "or the input of a module"
            )
        before = self.earlier.get(port)
        if before:
            value = _put_together([*before, value], handed)
        self._seen = (port, value, handed)
        return value

    def put(self, port: str, new: Any) -> None:
        """Replace the value that the programs see at a port.

        It is checked here, so that the error is raised at the user's line, and no value that does
        not fit reaches a kernel.

        Raises:
            WriteError: the new value has another structure, shape, dtype or device, or differs in a
                part that is not this request's.
            EngineError: the program was sent as one that only reads.
        """
        old = self.seen(port)
        if new is old:
            return
        if self.is_read_only:
            raise EngineError(_READ_ONLY)
        if port == "inputs":
            args, kwargs = new
            new = (tuple(args), dict(kwargs))
        difference = misfit(old, new)
        if difference is not None:
            raise WriteError(
                f"the value written is {difference}; make it fit, since the engine's kernels "
                "take nothing else"
            )
        _, _, handed = self._seen or ("", None, [])
        leaves = pytree.tree_leaves(new)
        for one, leaf in zip(handed, leaves, strict=True):
            if leaf is not one.seen and one.write is None and isinstance(leaf, torch.Tensor):
                raise WriteError(
                    "the value written stands where the engine has no value of this request's "
                    "own; write a tensor that has one row for each of its tokens"
                )
            if leaf is not one.seen:
                one.new = leaf
        self._seen = (port, new, handed)

    def finished(self, value: Any = None) -> Any:
        """Return the engine's value with the edits of this request.

        Args:
            value: the engine's value with the edits of other requests, if their portions were
                offered at the same time as this one.
        """
        if value is not None:
            self._value = value
        self._take_edits()
        return self._value

    def part_at(self, where: Any) -> torch.Tensor:
        """Return the request's rows of one tensor in the value."""
        part = self._span.part(_leaf_at(self._value, where))
        if part is None:
            raise InternalError("a value has lost its axis of tokens")
        return part

    # to the program

    def _presented(self, value: Any, form: str, handed: list[_Handed]) -> Any:
        if form == WHOLE and isinstance(value, torch.Tensor):
            return self._leaf(value, (), handed)
        if form == SUM:
            return self._summed(value[0], value[1], (0,), (1,), handed)
        if form == FIRST:
            return self._leaf(value[0], (0,), handed)
        found, structure = pytree.tree_flatten(value)
        seen = [self._leaf(leaf, number, handed) for number, leaf in enumerate(found)]
        return pytree.tree_unflatten(seen, structure)

    def _presented_input(self, handed: list[_Handed]) -> Any:
        args, kwargs = self._value
        main = argument_at(self._module, MAIN, args, kwargs)
        if main is None:
            raise NotCalledError("this call has no arguments, so it has no input; read '.inputs'")
        residual = argument_at(self._module, ("residual",), args, kwargs)
        value = _at(self._value, main)
        other = None if residual is None else _at(self._value, residual)
        if other is not None and residual is not None:
            return self._summed(value, other, main, residual, handed)
        return self._leaf(value, main, handed)

    def _leaf(self, leaf: Any, where: Any, handed: list[_Handed]) -> Any:
        part = self._span.part(leaf)
        if part is not None and self._is_operation:
            # a weight may happen to have as many rows as the batch has tokens
            is_part = not _is_of(leaf, self._weights) and self._span.is_clear(leaf)
            part = part if is_part else None
        if part is None:
            if isinstance(leaf, torch.Tensor):
                if not _is_of(leaf, self._weights):
                    raise _not_split(leaf, self._span.total, is_operation=self._is_operation)
                # shown as a copy: an edit of it is an error
                leaf = private(leaf)
            handed.append(_Handed(leaf, None))
            return leaf
        if self._ranks is not None:
            part = self._ranks.whole(self._value, where, part)
        seen = private(part.unsqueeze(0)) if self._copy is None else self._copy

        def write(new: torch.Tensor, edited: bool) -> None:
            self._write(where, new, edited)

        handed.append(_Handed(seen, write))
        return seen

    def _summed(
        self, hidden: Any, residual: Any, where: Any, other: Any, handed: list[_Handed]
    ) -> Any:
        mine, rest = self._span.part(hidden), self._span.part(residual)
        if mine is None or rest is None:
            return self._leaf(hidden, where, handed)
        if self._ranks is not None:
            mine = self._ranks.whole(self._value, where, mine)
            rest = self._ranks.whole(self._value, other, rest)

        def write(new: torch.Tensor, edited: bool) -> None:
            self._write(where, new, False, other)
            if self._ranks is None:
                self._own_part(other, False).zero_()
            else:
                self._write(other, torch.zeros_like(new), False)

        seen = private((mine + rest).unsqueeze(0)) if self._copy is None else self._copy
        handed.append(_Handed(seen, write))
        return seen

    # to the engine

    def _take_edits(self) -> None:
        if self._seen is None:
            return
        _, _, handed = self._seen
        self._seen = None
        for one in handed:
            if one.write is None:
                if isinstance(one.seen, torch.Tensor) and one.seen._version != one.version:
                    raise WriteError(
                        f"a tensor of shape {tuple(one.seen.shape)} was edited in place that all "
                        "requests share; edit one that has a row for each of this request's tokens"
                    )
                continue
            if self.is_read_only:
                if one.seen._version != one.version:
                    raise EngineError(_READ_ONLY)
                continue
            if one.new is not None:
                one.write(one.new, False)
            elif one.seen._version != one.version:
                one.write(one.seen, True)

    def _write(
        self, where: Any, new: torch.Tensor, edited: bool, residual: Any | None = None
    ) -> None:
        """Write rows into a leaf of the value, and record which rows changed.

        An edit in place goes into the engine's tensor, so every holder of that tensor sees it, as
        in transformers. A replacement goes into a copy, which only the module's caller gets.
        Integer tensors (token ids, positions) are buffers of the engine, so both go into a copy.

        Args:
            where: the path or number of the leaf.
            new: its rows, with the batch dimension.
            edited: True for an edit in place.
            residual: the leaf that a write of a sum sets to 0; None for any other value.
        """
        self.is_edited = True
        part = self.part_at(where)
        shape = tuple(part.shape) if self._ranks is None else self._ranks.shape(where, part)
        rows = new[0]
        if rows.shape != shape:
            raise WriteError(
                f"a value of shape {(1, *shape)} was given the shape {tuple(new.shape)} in place; "
                "keep its shape"
            )
        if self._ranks is None:
            rest = None if residual is None else self.part_at(residual)
            self.edits.append(Edit(where, residual, *changed_rows(part, rows, rest), edited))
        else:
            rows = self._ranks.written(where, rows, edited)
        self._own_part(where, edited, part).copy_(rows)

    def _own_part(
        self, where: Any, is_in_place: bool, part: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return a view of the request's rows of a leaf that may be written to.

        Without `is_in_place`, the leaf is replaced by a copy first, once in a visit.

        Args:
            where: the path or number of the leaf.
            is_in_place: True to write into the engine's own tensor, if it is of floating point.
            part: the rows of the present leaf, if the caller has them.
        """
        whole = _leaf_at(self._value, where)
        if not (is_in_place and whole.is_floating_point()) and id(whole) not in self._fresh:
            whole, part = whole.clone(), None
            self._fresh.add(id(whole))
            self._value = _with_leaf(self._value, where, whole)
        return self.part_at(where) if part is None else part

    def edit_again(self, edits: Sequence[Edit], first: int) -> Any:
        """Repeat edits on recomputed tokens; return the engine's value.

        Args:
            edits: the edits, with positions in the request.
            first: the position in the request of this portion's first token.
        """
        for edit in edits:
            rows = edit.rows + (edit.first - first)
            here = (rows >= 0) & (rows < self._span.count)
            if not here.any():
                continue
            part = self._own_part(edit.where, edit.is_in_place)
            rows, here = rows[here].to(part.device), here.to(part.device)
            part[rows] = edit.values[here]
            if edit.residual is not None:
                self._own_part(edit.residual, False)[rows] = 0
        return self._value


class _Handed:
    """A leaf that a program was handed.

    Attributes:
        seen: the program's copy.
        write: writes rows back into the engine's value; None for a leaf that has no rows of this
            request, and is shared by all.
        new: the tensor that the program has put in its place, None without one.
        version: the version of `seen` when it was handed out; a later one means an edit in place.
    """

    __slots__ = ("new", "seen", "version", "write")

    def __init__(self, seen: Any, write: Callable[[Any, bool], None] | None) -> None:
        self.seen = seen
        self.write = write
        self.new: Any = None
        self.version = seen._version if isinstance(seen, torch.Tensor) else 0


_READ_ONLY = (
    "a value of a module was changed by a block in whose text no change is to be seen, so the "
    "engine did not get ready for one; write 'module.output = value' or 'module.output[...] = "
    "value' in the block itself"
)


def _put_together(pieces: Sequence[Any], handed: Sequence[_Handed]) -> Any:
    """Join the values of a prompt's pieces, along the tokens."""
    each = [pytree.tree_leaves(piece) for piece in pieces]
    structure = pytree.tree_structure(pieces[-1])
    whole = []
    for number, one in enumerate(handed):
        if one.write is None:
            whole.append(each[-1][number])
            continue
        leaf = private(torch.cat([leaves[number] for leaves in each], dim=1))
        # the program now holds the joined tensor: its version shows an edit, which is an error
        # here, since pieces are kept for programs that only read
        one.seen, one.version = leaf, leaf._version
        whole.append(leaf)
    return pytree.tree_unflatten(whole, structure)


def copies_of(module: Any, output: Any, spans: Sequence[Span]) -> list[torch.Tensor] | None:
    """Copy each request's tokens of an output, in the form that its program sees.

    The same as `Portion.seen("output")` for each request, at 2 in place of 10 µs: the work that
    does not depend on the request is done once.

    Args:
        module: the module whose output it is.
        output: the engine's value.
        spans: the tokens of each request.

    Returns:
        A copy for each span, [1, tokens, ...]; None if the output is not a single tensor or sum
        with the tokens as its first axis.
    """
    form = output_form(module, output)
    leaves = output if form == SUM else (output[0] if form == FIRST else output,)
    flat = [spans[0].flat(one) for one in leaves]
    if any(one is None for one in flat):
        return None
    with torch.inference_mode(False), torch.no_grad():
        first, *others = (one.detach().unsqueeze(0) for one in flat if one is not None)
        if not others:
            return [first.narrow(1, one.start, one.count).clone() for one in spans]
        (rest,) = others
        return [
            first.narrow(1, one.start, one.count) + rest.narrow(1, one.start, one.count)
            for one in spans
        ]


def private(part: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into one with a version counter, which inference tensors do not have."""
    with torch.inference_mode(False), torch.no_grad():
        return part.detach().clone()


def _is_of(leaf: torch.Tensor, weights: frozenset[int] | None) -> bool:
    return weights is not None and leaf.untyped_storage().data_ptr() in weights


def _not_split(leaf: torch.Tensor, total: int, *, is_operation: bool) -> EngineError:
    what = "what this operation is given or returns" if is_operation else "this value"
    instead = "another operation, or the output or the input of a module"
    if not is_operation:
        instead = "another location"
    return EngineError(
        f"{what} has a tensor of shape {tuple(leaf.shape)} in which no axis is that of the "
        f"{total} tokens that the engine runs at once, so it may be computed from those of other "
        f"requests, and no part of it is this request's; read {instead}"
    )


def _at(value: Any, where: Any) -> Any:
    for key in where:
        value = value[key]
    return value


def _leaf_at(value: Any, where: Any) -> Any:
    return pytree.tree_leaves(value)[where] if isinstance(where, int) else _at(value, where)


def _with_leaf(value: Any, where: Any, new: Any) -> Any:
    if isinstance(where, int):
        leaves, structure = pytree.tree_flatten(value)
        leaves[where] = new
        return pytree.tree_unflatten(leaves, structure)
    if not where:
        return new
    key, *rest = where
    if isinstance(value, dict):
        return {**value, key: _with_leaf(value[key], rest, new)}
    return tuple(_with_leaf(one, rest, new) if i == key else one for i, one in enumerate(value))
