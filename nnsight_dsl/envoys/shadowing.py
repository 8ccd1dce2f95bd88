"""Errors at a name that both envoys and a submodule have, explained."""

from __future__ import annotations

import torch

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.ports import PORTS, StepKey
from nnsight_dsl.envoys.tree import how_to_reach
from nnsight_dsl.runtime.errors import PathError
from nnsight_dsl.runtime.locations import children_of


def explain_shadowed(root: Envoy, error: BaseException) -> None:
    """Add the fix to an error at a name that both envoys and a submodule have."""
    if not isinstance(error, AttributeError) or isinstance(error, PathError) or not error.name:
        return
    names: tuple[str, ...] = PORTS
    if isinstance(error.obj, (StepKey, torch.device)):
        names = ("iter",) if isinstance(error.obj, StepKey) else ("device",)
    elif callable(error.obj) and hasattr(Envoy, name := getattr(error.obj, "__name__", "")):
        names = (name,)
    for path, module in root._module.named_modules():
        for name in names:
            child = children_of(module).get(name)
            if child is not None and (error.name in PORTS or hasattr(child, error.name)):
                error.add_note(how_to_reach(root._envoy_at(path), name))
                return
