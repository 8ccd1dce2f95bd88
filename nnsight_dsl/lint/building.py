"""Building models for the linter: from a config, or by a factory, on the meta device.

No weights are loaded. `recording` runs the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnsight_dsl.envoys.envoy import Envoy

from .model_facts import Structure
from .recording import modules_of, needs_input, recorded, token_input
from .settings import SettingsError


def recorded_config(reference: str) -> Structure:
    """Build a model of transformers from its config, and record it."""
    import transformers

    from nnsight_dsl.modeling.loading import build

    config = transformers.AutoConfig.from_pretrained(reference)
    named = [
        getattr(transformers, name)
        for name in getattr(config, "architectures", None) or ()
        if hasattr(transformers, name)
    ]
    if named:
        with torch.device("meta"):
            module: nn.Module = named[0]._from_config(config).eval()
    else:
        module = build((transformers.AutoModelForCausalLM, reference), {})
    return recorded(module, *token_input(module))


def recorded_factory(reference: str) -> Structure:
    """Call a factory, and record the model that it makes."""
    name, _, attribute = reference.partition(":")
    factory = getattr(importlib.import_module(name), attribute, None)
    if not callable(factory):
        raise SettingsError(f"{name!r} has no function {attribute!r}; write package.module:factory")
    with torch.device("meta"):
        made = factory()
    given: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    if isinstance(made, tuple):
        made, *rest = made
        given = tuple(rest), {}
    if isinstance(made, Envoy):
        made = made._module
    if not isinstance(made, nn.Module):
        raise SettingsError(
            f"{reference!r} returned a {type(made).__name__}; return a torch.nn.Module, a wrapper "
            "of one, or a module and its arguments"
        )
    if given is None and hasattr(made, "config"):
        given = token_input(made)
    if given is None:
        structure = Structure(modules_of(made), needs_input=needs_input(made))
    else:
        structure = recorded(made, *given)
    return structure
