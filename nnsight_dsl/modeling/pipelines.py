"""Pipelines of diffusers: their modules as one module, built without weights, and loaded.

    Components(pipeline)                                # unet, vae, text_encoder, ...
    build("hf-internal/tiny-stable-diffusion", {})      # the same on the meta device

A pipeline is no `nn.Module`, and a wrapper is the root of a tree of modules. `Components` is that
root: its children are the modules of the pipeline, and its forward is the pipeline's call.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.errors import InputError

_DENOISERS = ("unet", "transformer", "prior", "decoder")
"""Names of the component that is called in each step of denoising."""

_HUB_OPTIONS = ("cache_dir", "revision", "token", "variant", "local_files_only", "subfolder")


class Components(nn.Module):
    """The modules of a pipeline; called, it runs the pipeline.

    An attribute that is no module, as `scheduler`, is the pipeline's.

    Args:
        pipeline: a pipeline of diffusers; None while its weights are not loaded.
        modules: its modules, by name; those that the pipeline has, if left out.
    """

    pipeline: Any

    def __init__(self, pipeline: Any, modules: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.__dict__["pipeline"] = pipeline
        for name, module in (modules_of(pipeline) if modules is None else modules).items():
            self._modules[name] = module

    def follow(self) -> None:
        """Take over the modules that the pipeline has now, as after `pipeline.unet = other`."""
        if self.pipeline is not None:
            now = modules_of(self.pipeline)
            if now != dict(self._modules):
                self._modules.clear()
                self._modules.update(now)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline."""
        return self.pipeline(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            pipeline = self.__dict__.get("pipeline")
            if pipeline is None or name.startswith("__"):
                raise
            return getattr(pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        pipeline = self.__dict__.get("pipeline")
        if pipeline is not None and name in pipeline.components:
            setattr(pipeline, name, value)
            self.follow()
        else:
            super().__setattr__(name, value)

    def _get_name(self) -> str:
        return "Components" if self.pipeline is None else type(self.pipeline).__name__


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the components of a pipeline that are modules."""
    found = pipeline.components.items()
    return {name: one for name, one in found if isinstance(one, nn.Module)}


def denoiser_of(module: nn.Module) -> str | None:
    """Return the name of the component that is called in each step; None if there is none."""
    return next((name for name in _DENOISERS if name in module._modules), None)


def parameters_of(pipeline_class: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call."""
    parameters = dict(inspect.signature(pipeline_class.__call__).parameters)
    parameters.pop("self", None)
    return parameters


def class_of(automodel: Any) -> Any:
    """Return the class of diffusers to load with.

    Raises:
        InputError: diffusers has no class of this name.
        ImportError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "DiffusionModel runs pipelines of diffusers, which is not installed; "
            "pip install 'nnsight-dsl[diffusion]'"
        ) from error

    if automodel is None:
        return diffusers.DiffusionPipeline
    if not isinstance(automodel, str):
        return automodel
    found = getattr(diffusers, automodel, None)
    if found is None:
        raise InputError(f"diffusers has no class {automodel!r}, which automodel= names")
    return found


def build(name: str, options: Mapping[str, Any]) -> Components:
    """Build the modules of a pipeline on the meta device, from their configurations."""
    import diffusers

    own = {key: options[key] for key in _HUB_OPTIONS if key in options}
    index = diffusers.DiffusionPipeline.load_config(name, **own)
    modules = {}
    for part, entry in index.items():
        if part in options:
            # given in place of the pipeline's own
            if isinstance(options[part], nn.Module):
                modules[part] = options[part]
            continue
        if part.startswith("_") or not isinstance(entry, (list, tuple)) or entry[0] is None:
            continue
        made = _built(name, part, _found(*entry), own)
        if made is not None:
            modules[part] = made.eval()
    return Components(None, modules)


def _found(library: str, class_name: str) -> Any:
    import diffusers

    # a library that is no package is a module of diffusers' own pipelines
    for home in (library, f"diffusers.pipelines.{library}"):
        try:
            found = getattr(import_module(home), class_name, None)
        except ImportError:
            continue
        if found is not None:
            return found
    return getattr(diffusers, class_name, None)


def _built(name: str, part: str, kind: Any, own: Mapping[str, Any]) -> nn.Module | None:
    from accelerate import init_empty_weights

    if nn.Module not in getattr(kind, "__mro__", ()):
        return None
    with init_empty_weights(include_buffers=True):
        if hasattr(kind, "load_config"):
            config = kind.load_config(name, **{**own, "subfolder": part})
            made: nn.Module = kind.from_config(config)
        else:
            import transformers

            config = transformers.AutoConfig.from_pretrained(
                name, **{key: own[key] for key in own if key != "variant"} | {"subfolder": part}
            )
            if not isinstance(config, getattr(kind, "config_class", None) or type(config)):
                # such as the text part of a configuration with several
                config = kind.config_class.from_pretrained(name, subfolder=part)
            made = kind._from_config(config)
    return made


def load(kind: Any, name: str, options: Mapping[str, Any], device: Any) -> Any:
    """Load a pipeline with its weights."""
    pipeline = kind.from_pretrained(name, **options)
    for module in modules_of(pipeline).values():
        module.eval()
    return pipeline if device is None else pipeline.to(torch.device(device))
