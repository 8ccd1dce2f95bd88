"""The names of nnsight 0.8 that behave otherwise than the native ones."""

from __future__ import annotations

import warnings
from typing import Any

from nnsight_dsl.blocks.callers import opens_block
from nnsight_dsl.compat import builtin_save, models
from nnsight_dsl.compat.deprecations import NNsightDeprecationWarning, warn_of_deprecated
from nnsight_dsl.compat.edits import Edit08
from nnsight_dsl.compat.envoys import Envoy08, warn_of_served_names, without_escapes
from nnsight_dsl.compat.tracers import Scan08, Tracer08
from nnsight_dsl.envoys import envoy as native
from nnsight_dsl.envoys.ports import StepKey
from nnsight_dsl.modeling import base, diffusion, language, vision_language
from nnsight_dsl.modeling.generation import Generation
from nnsight_dsl.modeling.loading import pad_left
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.errors import UnmetError as OutOfOrderError
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.steps import StepSpec
from nnsight_dsl.tracing.saving import save as save
from nnsight_dsl.transforms.bytecode.counted_names import counted_names

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


Envoy = Envoy08


class NNsight(models.Adapted, Envoy08):
    """A model for programs written for nnsight 0.8: see `nnsight_dsl.NNsight`."""

    _trace_class = Tracer08
    _scan_class = Scan08
    _edit_class = Edit08
    _envoy_class = Envoy08
    _calls_hooks = True
    _names_operations = staticmethod(counted_names)
    _lists_operations = True

    def _set_up(self, driver: Driver) -> None:
        driver.warns_of_open = driver.writes.shares = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("rename"):
            kwargs["rename"] = without_escapes(kwargs["rename"])
        super().__init__(*args, **kwargs)
        if self._whole() is self:
            warn_of_served_names(self)
        # so that saving out of a run says what is wrong, for tensors, too
        builtin_save.mount_on_tensors()

    @property
    def iter(self) -> StepKey:
        """Steps of a generation: the deprecated spelling of `tracer.iter`."""
        warn_of_deprecated("model.iter is deprecated in nnsight 0.8; write tracer.iter")
        return super().iter

    def all(self) -> StepSpec:
        """All steps: the deprecated spelling of `tracer.all()`.

        Returns:
            The steps, to be looped over.
        """
        warn_of_deprecated("model.all() is deprecated in nnsight 0.8; write tracer.all()")
        return super().all()

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Call the model, without its edits: those are for runs."""
        return native.Envoy.__call__(self, *args, hook=hook, **kwargs)


class Part(NNsight, base.Part):
    """A part of a model for programs written for nnsight 0.8."""


NNsight._part_class = Part


class Generation08(Generation):
    """`model.generator` of programs for nnsight 0.8, in which its output is deprecated."""

    def _used(self, machine: Machine) -> None:
        warnings.warn_explicit(
            "model.generator.output is deprecated in nnsight 0.8; write tracer.result",
            NNsightDeprecationWarning,
            machine.program.filename,
            machine.line,
        )


class TransformersModel(models.AdaptedTransformers, NNsight):
    """A model of transformers for programs written for nnsight 0.8.

    Args:
        model: as for `nnsight_dsl.TransformersModel`.
        **kwargs: likewise, `task=` among them.
    """

    _generation_class = Generation08

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if kwargs.get("tokenizer") is not None:
            # the program's own, too: it pads a list of texts on the side that batches are padded on
            pad_left(self.tokenizer, self._module)

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Generate text, with the block below, or at once if there is none.

        Args:
            *args: the prompt, or several.
            trace: False generates without a block.
            **kwargs: as for `nnsight_dsl.LanguageModel.generate`.

        Returns:
            The tracer of the block; without one, the token ids.
        """
        return super().generate(*args, trace=trace and opens_block(), **kwargs)


class DiffusionModel(NNsight, diffusion.DiffusionModel):
    """A pipeline of diffusers for programs written for nnsight 0.8.

    Args:
        pipeline: as for `nnsight_dsl.DiffusionModel`.
        **kwargs: likewise.
    """

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Run the pipeline with the block below, for one step if nothing says how many.

        Without a block it runs at once, for the pipeline's own number of steps.

        Args:
            *args: the prompt, or several.
            trace: False runs the pipeline without a block.
            **kwargs: as for `nnsight_dsl.DiffusionModel.generate`.

        Returns:
            The tracer of the block; without one, the output of the pipeline.
        """
        if not (trace and opens_block()):
            return super().generate(*args, trace=False, **kwargs)
        return super().generate(*args, **self._with_steps(kwargs))


class LanguageModel(TransformersModel, language.LanguageModel):
    """The deprecated name of `TransformersModel` with the task `"text-generation"`."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        warn_of_deprecated(
            "LanguageModel is deprecated in nnsight 0.8; write "
            "TransformersModel(..., task='text-generation')"
        )
        super().__init__(model, **kwargs)


class VisionLanguageModel(TransformersModel, vision_language.VisionLanguageModel):
    """The deprecated name of `TransformersModel` with the task `"image-text-to-text"`."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        warn_of_deprecated(
            "VisionLanguageModel is deprecated in nnsight 0.8; write "
            "TransformersModel(..., task='image-text-to-text')"
        )
        super().__init__(model, **kwargs)
