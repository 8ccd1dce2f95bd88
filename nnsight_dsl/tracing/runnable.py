"""Wrappers that can be run, and the hooks that a run calls on its wrapper.

`Runnable` has the hooks of a run with the answers of a plain PyTorch module. `modeling` overrides
them for each kind of model: how inputs are batched, which call is a step, how weights are loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.errors import BatchingError
from nnsight_dsl.runtime.turns import Family
from nnsight_dsl.runtime.values.rows import Rows
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
    """True if `_batch` is called for one input, too: it is not yet the arguments of the call."""

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
        return True

    def _prepare(self) -> None:
        """Prepare for a run: a model with lazily loaded weights is loaded here."""
        origin = self._origin
        if origin is not None:
            # the original loads the weights for its copies
            origin._prepare()
            if origin._module is not self._module:
                self._rebind(origin._module)
                self._family = origin._family

    def _function(self, name: str) -> Callable[..., Any]:
        """Return the function that a run calls, by the name of the tracer's method."""
        module: Callable[..., Any] = self._module
        return module

    def _takes_steps(self, function: str) -> bool:
        """Return whether a function calls the model once for each token that it generates."""
        return function == "generate"

    def _stepping(self) -> Envoy:
        """Return the envoy that is called once in each step of a generation."""
        return self

    def _batch(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        """Make one call of the inputs of a run.

        Args:
            inputs: the inputs, one for each invoke that has one.
            function: `"trace"` or `"generate"`.
            options: arguments that were given for all inputs together.

        Raises:
            BatchingError: there are several inputs, and this kind of model cannot join them.
        """
        if len(inputs) > 1:
            raise BatchingError(
                f"{len(inputs)} invokes have an input, and nothing says how inputs of "
                f"{type(self._module).__name__} make one batch; trace them one after the other, "
                "batch them yourself in one input, or wrap a language model in LanguageModel"
            )
        one = inputs[0]
        return Batch(one.args, {**options, **one.kwargs}, (1,))

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
