"""What the values of vLLM's modules are called elsewhere: the form in which a program sees them.

vLLM runs all tokens of all requests as one flat axis, and its modules pass values on in ways of
their own. A location is to mean what it means on the model of transformers, so a program sees

* the tokens of its own request, as a batch of one: `[tokens, width]` is `[1, tokens, width]`;
* `hidden + residual` where a decoder layer returns or takes the two apart, so that the addition
  can be fused into the next norm. What is written goes to `hidden`, and the residual becomes 0,
  so that the sum is exactly what was written;
* the tensor alone where a linear layer returns it with a bias that somebody else is to add, and
  where a norm returns the sum beside its output;
* as `.input`, the hidden states, also of a call that takes the positions first.

`.inputs` are all arguments as vLLM passes them, for the request's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from nnsight_dsl.modeling.vllm.engine.forms import FIRST, MAIN, SUM, WHOLE, argument_at, output_form
from nnsight_dsl.modeling.vllm.engine.token_spans import Edit, Span
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
    """What one request is offered of a value, and how its edits get back.

    A program is handed copies: kernels of the engine write into buffers that they have handed on,
    and a copy is a tensor with a version counter, which tells whether it was edited in place.

    Args:
        module: whose value it is.
        value: the engine's value.
        span: the request's tokens.
        fresh: ids of tensors that are copies already, made for what was written in this visit.
        phase: whether it is an input.
        ranks: the other ranks that hold a part of it.
        weights: of an operation, where the model's weights lie in memory.
        copy: the program's copy of an output, where `copies_of` has made it.

    Attributes:
        is_edited: whether the engine's value was changed.
        edits: what was changed, by rows of this portion.
        earlier: by port, what the pieces of the prompt before this one gave.
        is_read_only: whether a change is an error.
    """

    __slots__ = (
        "_copy",
        "_fresh",
        "_is_inputs",
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
    ) -> None:
        self._copy = copy
        self._weights = weights
        self._ranks = ranks
        self._module = module
        self._value = value
        self._span = span
        self._fresh = fresh
        self._is_inputs = phase == "inputs"
        self._seen: tuple[str, Any, list[_Handed]] | None = None
        self.edits: list[Edit] = []
        self.earlier: Mapping[str, Sequence[Any]] = {}
        self.is_read_only = False
        self.is_edited = False

    def seen(self, port: str) -> Any:
        """Return what the request's programs see of a port."""
        if self._seen is not None and self._seen[0] == port:
            return self._seen[1]
        self._take_edits()
        handed: list[_Handed] = []
        if port == "inputs" or not self._is_inputs:
            form = WHOLE if self._is_inputs else output_form(self._module, self._value)
            value = self._presented(self._value, form, handed)
        else:
            value = self._presented_input(handed)
        if self._weights is not None and not any(one.write for one in handed):
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
        """Replace what the programs see of a port.

        Raises:
            WriteError: it has another structure, shape, dtype or device than its place.
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
        """Return the engine's value, with the edits of this request.

        Args:
            value: the engine's value with the edits of other requests, where they were offered
                theirs at the same time.
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
        if part is not None and self._weights is not None and _is_of(leaf, self._weights):
            # as many rows as the batch has tokens, by chance
            part = None
        if part is None:
            # what all requests share is shown as a copy
            leaf = private(leaf) if isinstance(leaf, torch.Tensor) else leaf
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
        """Put rows into a leaf of the value, and note which were changed.

        An edit in place shows wherever the engine goes on with the same tensor, as in
        transformers; a replacement is seen by the caller alone. Numbers of tokens and positions
        stand in buffers of the engine, which are never written to.

        Args:
            where: the leaf.
            new: its rows, as a batch of one.
            edited: whether they were edited in place.
            residual: the leaf that is to become 0, if there is one.
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
            self.edits.append(Edit(where, residual, *_changed(part, rows, rest), edited))
        else:
            rows = self._ranks.written(where, rows, edited)
        self._own_part(where, edited, part).copy_(rows)

    def _own_part(
        self, where: Any, is_in_place: bool, part: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the request's rows of a leaf, in a copy of it where they are not to be edited.

        Args:
            where: the leaf.
            is_in_place: whether the engine's own tensor is to be edited, if it has real numbers.
            part: the request's rows of it as it is, if they are at hand.
        """
        whole = _leaf_at(self._value, where)
        if not (is_in_place and whole.is_floating_point()) and id(whole) not in self._fresh:
            whole, part = whole.clone(), None
            self._fresh.add(id(whole))
            self._value = _with_leaf(self._value, where, whole)
        return self.part_at(where) if part is None else part

    def edit_again(self, edits: Sequence[Edit], first: int) -> Any:
        """Make edits again; return the engine's value.

        Args:
            edits: what was changed, by positions in the request.
            first: the position of this portion's first token.
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
    """A leaf that a program was handed, and how to write it back; None where it cannot be."""

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


_ONLY_ROW = torch.zeros(1, dtype=torch.long)


def _changed(
    before: torch.Tensor, after: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of the rows that differ, on the CPU, and copies of them.

    Args:
        before: rows of the engine's.
        after: what they are given.
        residual: what is to be added to the rows before, None for nothing.
    """
    if before.shape[0] == 1:
        # the one token of a step that goes on: looking would cost more than it saves
        return _ONLY_ROW, after.detach().clone()
    before = before if residual is None else before + residual
    rows = (before != after).reshape(before.shape[0], -1).any(1).nonzero().flatten()
    return rows.cpu(), after[rows]


def _put_together(pieces: Sequence[Any], handed: Sequence[_Handed]) -> Any:
    """Join what the pieces of a prompt gave, along their tokens."""
    each = [pytree.tree_leaves(piece) for piece in pieces]
    structure = pytree.tree_structure(pieces[-1])
    whole = []
    for number, one in enumerate(handed):
        if one.write is None:
            whole.append(each[-1][number])
            continue
        leaf = private(torch.cat([leaves[number] for leaves in each], dim=1))
        # what is changed is this one, of which the engine knows nothing
        one.seen, one.version = leaf, leaf._version
        whole.append(leaf)
    return pytree.tree_unflatten(whole, structure)


def copies_of(module: Any, output: Any, spans: Sequence[Span]) -> list[torch.Tensor] | None:
    """Copy each request's tokens of an output, as its program is to see them.

    This is what `Portion` does for one request, with less between the copies: 2 in place of 10 µs
    for each.

    Args:
        module: whose output it is.
        output: the engine's value.
        spans: the tokens of each request.

    Returns:
        A copy for each span; None for an output of more than one tensor.
    """
    form = output_form(module, output)
    leaves = output if form == SUM else (output[0] if form == FIRST else output,)
    total = spans[0].total
    if not all(isinstance(one, torch.Tensor) and one.shape[:1] == (total,) for one in leaves):
        return None
    with torch.inference_mode(False), torch.no_grad():
        first, *others = (one.detach().unsqueeze(0) for one in leaves)
        if not others:
            return [first.narrow(1, one.start, one.count).clone() for one in spans]
        (rest,) = others
        return [
            first.narrow(1, one.start, one.count) + rest.narrow(1, one.start, one.count)
            for one in spans
        ]


def private(part: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into one that counts its versions, also in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return part.detach().clone()


def _is_of(leaf: torch.Tensor, weights: frozenset[int]) -> bool:
    return leaf.untyped_storage().data_ptr() in weights


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
