"""The names of nnsight 0.8 that behave otherwise than the native ones."""

from __future__ import annotations

from typing import Any

from nnsight_dsl.compat import models
from nnsight_dsl.compat.deprecations import warn_of_deprecated
from nnsight_dsl.runtime.errors import UnmetError as OutOfOrderError
from nnsight_dsl.tracing.saving import save as save

__all__ = ["LanguageModel", "NNsight", "OutOfOrderError", "TransformersModel", "save"]


class NNsight(models.Adapted):
    """A model for programs written for nnsight 0.8: see `nnsight_dsl.NNsight`."""


class TransformersModel(models.AdaptedTransformers, NNsight):
    """A model of transformers for programs written for nnsight 0.8.

    Args:
        model: as for `nnsight_dsl.LanguageModel`, with its keywords.
        task: the task of the model; `"text-generation"` is the one that is known.

    Raises:
        NotImplementedError: another task is given.
    """

    def __init__(self, model: Any, *, task: str | None = None, **kwargs: Any) -> None:
        if task not in (None, "text-generation"):
            raise NotImplementedError(
                f"task={task!r} is not known, 'text-generation' is; give the class of transformers "
                "that loads the model as automodel=, and write NNsight(module) for any module"
            )
        super().__init__(model, **kwargs)


class LanguageModel(TransformersModel):
    """The deprecated name of `TransformersModel` with the task `"text-generation"`."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        warn_of_deprecated(
            "LanguageModel is deprecated in nnsight 0.8; write "
            "TransformersModel(..., task='text-generation')"
        )
        super().__init__(model, **kwargs)
