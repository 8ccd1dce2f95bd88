"""`VisionLanguageModel`: the wrapper of models that generate text from images and texts."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling.transformers_model import TransformersModel


class VisionLanguageModel(TransformersModel):
    """A model of images and texts, with its processor.

    Args:
        model: a repository name, a path, or a module that is already loaded, wrapped or not.
        **kwargs: as for `TransformersModel`; the task is `"image-text-to-text"`.

    Example:
        >>> model = VisionLanguageModel("llava-hf/llava-1.5-7b-hf")
        >>> with model.trace("USER: <image> What is this? ASSISTANT:", images=[image]):
        ...     logits = model.lm_head.output[:, -1].save()
    """

    def __init__(self, model: str | os.PathLike[str] | nn.Module | Envoy, **kwargs: Any) -> None:
        kwargs.setdefault("task", "image-text-to-text")
        super().__init__(model, **kwargs)
