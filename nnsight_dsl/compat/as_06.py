"""The names of nnsight 0.6 that behave otherwise than the native ones."""

from __future__ import annotations

from typing import TypeVar

from nnsight_dsl.compat import models
from nnsight_dsl.compat.envoys import Envoy06
from nnsight_dsl.modeling import base, diffusion, language, vision_language
from nnsight_dsl.runtime.errors import OutOfOrderError as OutOfOrderError
from nnsight_dsl.runtime.machines.machine import advanced
from nnsight_dsl.tracing import saving

__all__ = [
    "DiffusionModel",
    "Envoy",
    "LanguageModel",
    "NNsight",
    "OutOfOrderError",
    "TransformersModel",
    "VisionLanguageModel",
    "save",
]

_Value = TypeVar("_Value")


Envoy = Envoy06


class NNsight(models.Adapted, Envoy06):
    """A model for programs written for nnsight 0.6: see `nnsight_dsl.NNsight`."""

    _envoy_class = Envoy06


class Part(NNsight, base.Part):
    """A part of a model for programs written for nnsight 0.6."""


NNsight._part_class = Part


class DiffusionModel(NNsight, diffusion.DiffusionModel):
    """A pipeline of diffusers for programs written for nnsight 0.6."""


class LanguageModel(models.AdaptedTransformers, NNsight, language.LanguageModel):
    """A language model for programs written for nnsight 0.6: see `nnsight_dsl.LanguageModel`."""


TransformersModel = LanguageModel


class VisionLanguageModel(models.AdaptedTransformers, NNsight, vision_language.VisionLanguageModel):
    """A model of images and texts for programs written for nnsight 0.6."""


def save(value: _Value) -> _Value:
    """Keep a value after the block, and return it; out of a run, only return it."""
    return value if advanced() is None else saving.save(value)
