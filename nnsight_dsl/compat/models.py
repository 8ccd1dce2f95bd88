"""Wrappers with the attributes that programs written for nnsight ask of them."""

from __future__ import annotations

from typing import Any

from nnsight_dsl.compat.tracers import AdaptedTracer
from nnsight_dsl.modeling.base import NNsight
from nnsight_dsl.modeling.language import LanguageModel


class Adapted(NNsight):
    """A wrapper of any module, as programs written for nnsight expect it."""

    _trace_class = AdaptedTracer


class AdaptedTransformers(Adapted, LanguageModel):
    """A wrapper of a model of transformers, as programs written for nnsight expect it."""

    _own = LanguageModel._own | frozenset({"_given"})

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self._given = (model,), kwargs

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments that the wrapper was made with."""
        args: tuple[Any, ...] = self._given[0]
        return args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments that the wrapper was made with."""
        kwargs: dict[str, Any] = self._given[1]
        return kwargs

    @property
    def repo_id(self) -> str | None:
        """Name or path that the model was given by; of a module, the one in its configuration."""
        (given,), _ = self._given
        if isinstance(given, AdaptedTransformers):
            return given.repo_id
        if isinstance(given, str) or hasattr(given, "__fspath__"):
            return str(given)
        name = getattr(getattr(self._module, "config", None), "_name_or_path", None)
        return name or None
