"""Read and change the inside of a running model, in ordinary Python.

    from nnsight_dsl import LanguageModel

    model = LanguageModel("openai-community/gpt2")
    with model.trace("The Eiffel Tower is in the city of"):
        hidden = model.transformer.h[5].output.save()
        model.transformer.h[8].mlp.output[:, -1] = 0
        logits = model.lm_head.output[:, -1].save()

The names below are loaded when they are first used, so that importing this package imports
neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nnsight_dsl.transforms.held_texts import hold_texts
from nnsight_dsl.version import __version__ as __version__

if TYPE_CHECKING:
    from nnsight_dsl.blocks.import_hook import install_import_hook as install_import_hook
    from nnsight_dsl.config import CONFIG as CONFIG
    from nnsight_dsl.envoys.envoy import Envoy as Envoy
    from nnsight_dsl.modeling.base import NNsight as NNsight
    from nnsight_dsl.modeling.diffusion import DiffusionModel as DiffusionModel
    from nnsight_dsl.modeling.language import LanguageModel as LanguageModel
    from nnsight_dsl.modeling.transformers_model import TransformersModel as TransformersModel
    from nnsight_dsl.modeling.vision_language import VisionLanguageModel as VisionLanguageModel
    from nnsight_dsl.studies.layers import layers_report as layers_report
    from nnsight_dsl.studies.sweep import Sweep as Sweep
    from nnsight_dsl.studies.sweep import sweep as sweep
    from nnsight_dsl.tracing.backends import traceable as traceable
    from nnsight_dsl.tracing.intervene import intervene as intervene
    from nnsight_dsl.tracing.saving import save as save

_HOMES = {
    "CONFIG": "nnsight_dsl.config",
    "DiffusionModel": "nnsight_dsl.modeling.diffusion",
    "Envoy": "nnsight_dsl.envoys.envoy",
    "LanguageModel": "nnsight_dsl.modeling.language",
    "NNsight": "nnsight_dsl.modeling.base",
    "TransformersModel": "nnsight_dsl.modeling.transformers_model",
    "VisionLanguageModel": "nnsight_dsl.modeling.vision_language",
    "intervene": "nnsight_dsl.tracing.intervene",
    "install_import_hook": "nnsight_dsl.blocks.import_hook",
    "layers_report": "nnsight_dsl.studies.layers",
    "save": "nnsight_dsl.tracing.saving",
    "Sweep": "nnsight_dsl.studies.sweep",
    "sweep": "nnsight_dsl.studies.sweep",
    "traceable": "nnsight_dsl.tracing.backends",
}
_ERRORS = (
    "BarrierError BatchingError BlockNotFoundError BlockUseError CarriedCallError EngineError "
    "FreedGraphError GenerationEndedError GradientError GradientOrderError InputError "
    "InternalError InterventionArgumentError InterventionError InvokeError NestedRunError "
    "NoGraphError NoInputError NoSourceError NotCalledError NotRunningError OutOfOrderError "
    "PathError SharedNameError StaleEditError TokenizerNotFoundError UnsupportedSyntaxError "
    "WriteError WriteShapeError"
).split()
_HOMES.update(dict.fromkeys(_ERRORS, "nnsight_dsl.errors"))

_REMOTE = ("ndif_status", "is_model_running")
"""Names of the programming model that only remote execution gives a meaning."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if name in _REMOTE:
        raise AttributeError(
            f"{name!r} is about remote execution, which is not built; a model runs on this machine"
        )
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """This package, in which `intervene` and `sweep` are functions, whoever imports those modules.

    Python binds a module in its package when it has been imported, over what has the same name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

# the script may be edited while the libraries below are being imported
hold_texts()


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
