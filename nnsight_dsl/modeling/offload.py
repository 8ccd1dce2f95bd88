"""Offloaded modules: weights that accelerate loads for each call.

    places = {"transformer.h.0": "disk", ...}
    model = LanguageModel("openai-community/gpt2", device_map=places, offload_folder=folder)

Between calls, the weights of an offloaded module are on the meta device. Accelerate replaces the
module's `forward` by a hook that loads them before a call and drops them after it. Taps wrap the
whole call, so they are not affected. Two things are: the device of the module's inputs, which the
weights do not show, and a scan, which runs the module with fake weights that accelerate must not
replace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.record import Record, restore_item


def is_offloaded(module: nn.Module) -> bool:
    """Return whether a module, or one inside it, has a hook of accelerate."""
    return any("_hf_hook" in one.__dict__ for one in module.modules())


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device on which accelerate runs a module; None if its hooks set none."""
    hook: Any = module.__dict__.get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def leave_out_loading(module: nn.Module, record: Record) -> None:
    """Remove accelerate's hooks from all modules, so that they use the weights they have.

    Args:
        module: the root module.
        record: gets the actions that restore the hooks.
    """
    for one in module.modules():
        own = one.__dict__
        if "_hf_hook" in own and "_old_forward" in own and "forward" in own:
            record.append((restore_item, own, "forward", own["forward"]))
            own["forward"] = own["_old_forward"]
