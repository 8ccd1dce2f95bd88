"""Wrappers with the attributes that programs written for nnsight ask of them."""

from __future__ import annotations

from typing import Any

from nnsight_dsl.compat.envoys import Walked
from nnsight_dsl.compat.tracers import AdaptedTracer
from nnsight_dsl.modeling.base import NNsight
from nnsight_dsl.modeling.transformers_model import TransformersModel


class Adapted(NNsight, Walked):
    """A wrapper of any module, as programs written for nnsight expect it."""

    _trace_class = AdaptedTracer
    _dot_is_root = False


class AdaptedTransformers(Adapted, TransformersModel):
    """A wrapper of a model of transformers, as programs written for nnsight expect it."""

    _own = TransformersModel._own | frozenset({"_given"})

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self._given = (model,), kwargs
        if self.repo_id is None:
            # a module was given: the name in its configuration
            name = getattr(getattr(self._module, "config", None), "_name_or_path", None)
            self.repo_id = name or None

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
