"""Wrappers that can be run, and the hooks that a run calls on its wrapper.

`Runnable` has the hooks of a run with the answers of a plain PyTorch module. `modeling` overrides
them for each kind of model: how inputs are batched, which call is a step, how weights are loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.errors import BatchingError
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.turns import Family
from nnsight_dsl.runtime.values.rows import Rows, leaves_of
from nnsight_dsl.tracing.edit import KeptEdit
from nnsight_dsl.tracing.guards import Fit
from nnsight_dsl.transforms.program import Program


@dataclass(slots=True)
class Input:
    """What one invoke runs on: the arguments given for it, and later its rows.

    Attributes:
        args: positional arguments, as the user gave them.
        kwargs: keyword arguments, as the user gave them.
        rows: its rows of the batch, None for all.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rows: Rows | None = None

    def __bool__(self) -> bool:
        return bool(self.args or self.kwargs)


@dataclass(frozen=True, slots=True)
class Batch:
    """One call of the model that runs several inputs.

    Attributes:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        counts: rows of each input, in order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    counts: tuple[int, ...]


class Runnable(Envoy):
    """A wrapper that can be traced.

    Attributes:
        _edits: the edits of the wrapper, in the order in which they were made.
        _fits: cache: the guards of each program that has run on it.
        _linted: programs that the linter has checked.
        _family: the wrappers that share a module with this one, whose runs take turns.
        _origin: the wrapper that this one is a copy of.
    """

    _edits: list[KeptEdit]
    _fits: dict[Program, Fit]
    _linted: set[Program]
    _family: Family
    _origin: Runnable | None

    _makes_batches = False
    """True if `_merged` is called for one input, too: it is not yet the arguments of the call."""
    _has_own_batches = False
    """True if a user's class has a `_batch`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_batch" in cls.__dict__:
            cls._has_own_batches = cls._makes_batches = True

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(type(self._module).forward).parameters

    _has_parts_beside = False
    """True if modules beside `_stepping()` run in a generation, and count their own visits."""

    _has_sequences = False
    """True if lists and arrays have an item for each row, as the images of a pipeline."""

    def _runs_empty(self, options: Mapping[str, Any]) -> bool:
        """Return whether the model can be called with some options and no input."""
        parameters = self._parameters().values()
        kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        needed = [one for one in list(parameters)[1:] if one.kind not in kinds]
        has_any = any(one.kind is kinds[0] for one in parameters)
        return not has_any and all(
            one.default is not inspect.Parameter.empty or one.name in options for one in needed
        )

    def _has_prompt(self, given: Input) -> bool:
        """Return whether the arguments of a trace are an input, in a trace that has invokes."""
        return not self._has_own_batches or self._batch_size(*given.args, **given.kwargs) > 0

    def _prepare(self) -> None:
        """Prepare for a run: a model with lazily loaded weights is loaded here."""
        origin = self._origin
        if origin is not None:
            # the original loads the weights for its copies
            origin._prepare()
            if origin._module is not self._module:
                self._rebind(origin._module)
                self._family = origin._family

    def _whole(self) -> Envoy:
        """Return the root of the model in which paths of this wrapper's modules begin."""
        return self

    def _function(self, name: str) -> Callable[..., Any]:
        """Return the function that a run calls, by the name of the tracer's method."""
        module: Callable[..., Any] = self._module
        return module

    def _takes_steps(self, function: str) -> bool:
        """Return whether a function calls the model once for each token that it generates."""
        return function == "generate"

    def _set_up(self, driver: Driver) -> None:
        """Set the switches of a new driver in which a dialect differs."""

    def _streams(self, function: str) -> bool:
        """Return whether a function hands each token that it generates to a streamer."""
        return False

    def _stepping(self) -> Envoy:
        """Return the envoy that is called once in each step of a generation."""
        return self

    def _merged(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        """Make one call of the inputs of a run, by `_batch_size` and `_batch`.

        Args:
            inputs: the inputs, one for each invoke that has one.
            function: `"trace"` or `"generate"`.
            options: arguments that were given for all inputs together.

        Raises:
            BatchingError: there are several inputs, and this kind of model cannot join them.
        """
        if len(inputs) == 1 and not self._has_own_batches:
            one = inputs[0]
            return Batch(one.args, {**options, **one.kwargs}, (1,))
        given = [(one.args, {**one.kwargs}) for one in inputs]
        counts = tuple(self._batch_size(*args, **kwargs) for args, kwargs in given)
        if 0 in counts:
            raise BatchingError(
                f"_batch_size gives input {counts.index(0)} of the invokes no rows; give arguments "
                "that are for all invokes to the trace itself"
            )
        args, kwargs = self._batch(given, self._function(function))
        _check_rows(counts, (args, kwargs))
        return Batch(tuple(args), {**options, **kwargs}, counts)

    # overridden by users for batches of their own

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        """Return how many rows of the batch the input of one invoke has.

        Args:
            *inputs: its positional arguments.
            **kwargs: its keyword arguments.

        Returns:
            The rows; 0 for keywords that are no input, and are arguments for all invokes.
        """
        return 1 if inputs or kwargs else 0

    def _batch(
        self, invokes: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], fn: Callable[..., Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Make one call of the inputs of all invokes; called for one input, too.

        Args:
            invokes: the arguments of each: positional ones, and keywords.
            fn: the function that is called: the module, or its `generate`.

        Returns:
            The arguments of the call: positional ones, and keywords.

        Raises:
            BatchingError: this kind of model cannot join them.

        Example:
            >>> class Rows(NNsight):
            ...     def _batch_size(self, *inputs, **kwargs):
            ...         return len(inputs[0]) if inputs else 0
            ...
            ...     def _batch(self, invokes, fn):
            ...         return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}
        """
        raise BatchingError(
            f"{len(invokes)} invokes have an input, and nothing says how inputs of "
            f"{type(self._module).__name__} make one batch; trace them one after the other, "
            "batch them yourself in one input, wrap a language model in LanguageModel, or write "
            "a subclass with _batch_size and _batch (docs/models.md)"
        )

    def _explain(self, error: BaseException) -> None:
        """Add a note to an error of a run, if its cause is known for this kind of model."""

    def _first_step(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of a generation's first forward, from those of `generate`."""
        return kwargs

    def _row_factors(self, function: str, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Return the rows for each row of the input: in the model, and in the result.

        Both are 1, but under beam search and with several sequences for each prompt.
        """
        return 1, 1

    def _row_repeats(self, function: str, kwargs: Mapping[str, Any]) -> int:
        """Return how often a tensor of a run may have the whole batch, one after the other."""
        return 1


def _check_rows(counts: Sequence[int], arguments: Any) -> None:
    """Check the rows of a call that a user's class has made.

    Raises:
        BatchingError: no tensor of the call has as many rows as the inputs.
    """
    tensors = [one for one in leaves_of(arguments) if isinstance(one, torch.Tensor) and one.ndim]
    if tensors and all(len(one) != sum(counts) for one in tensors):
        raise BatchingError(
            f"_batch makes a call with tensors of {sorted({len(one) for one in tensors})} rows, "
            f"and _batch_size gives the inputs {' + '.join(map(str, counts))}; both have to count "
            "the first axis"
        )
