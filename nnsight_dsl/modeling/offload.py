"""Offloaded modules: weights that accelerate brings in for each call.

Of a module that accelerate has offloaded, the weights are on the meta device between calls. Its
hook stands in place of `forward`, loads them before a call and drops them after it. Taps stand
around the whole call and need not know; two things do: where such a module computes, and a scan,
which has weights of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.record import Record, restore_item


def is_offloaded(module: nn.Module) -> bool:
    """Tell whether accelerate's hooks stand on a module or on one in it."""
    return any("_hf_hook" in one.__dict__ for one in module.modules())


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device on which accelerate lets a module compute, None if it does not say."""
    hook: Any = module.__dict__.get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def leave_out_loading(module: nn.Module, record: Record) -> None:
    """Let modules use the weights they have, without accelerate's hooks, until that is undone."""
    for one in module.modules():
        own = one.__dict__
        if "_hf_hook" in own and "_old_forward" in own and "forward" in own:
            record.append((restore_item, own, "forward", own["forward"]))
            own["forward"] = own["_old_forward"]
