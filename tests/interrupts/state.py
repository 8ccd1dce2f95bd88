"""What an interrupted run must leave as it was: the model, torch's switches, our registries."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, overrides
from torch.utils import _python_dispatch as dispatch

from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tapping.tapped_class import taps_now

_KERNELS = ("flash", "mem_efficient", "math", "cudnn")


def state_of(module: nn.Module, model: Any) -> dict[str, Any]:
    """Return what an interrupted run must not change, to be compared."""
    found: dict[str, Any] = {}
    for path, one in module.named_modules():
        found[f"class of {path!r}"] = type(one)
        for name, value in vars(one).items():
            found[f"{path}.{name}"] = _identities(value)
    found["taps"] = dict(taps_now)
    found["Tensor.save"] = "save" in vars(torch.Tensor)
    found["fast path"] = torch.backends.mha.get_fastpath_enabled()
    found["machine"] = current_machine()
    found["trace function"] = sys.gettrace()
    frame = sys._getframe(1)
    while frame is not None:
        found[f"trace function of {frame.f_code.co_qualname}"] = frame.f_trace
        frame = frame.f_back  # type: ignore[assignment]
    found["turn"] = _is_held(model)
    found.update(_switches())
    return found


def _identities(value: Any) -> Any:
    if isinstance(value, Mapping):
        # a gradient is the user's, and what a hook is called with
        return [(key, id(one)) for key, one in value.items()]
    return id(value) if not isinstance(value, (bool, int, str, type(None))) else value


def _is_held(model: Any) -> bool:
    from threading import Thread

    taken: list[bool] = []
    lock = model._family.leader().lock

    def try_it() -> None:
        is_free = lock.acquire(timeout=5)
        taken.append(not is_free)
        if is_free:
            lock.release()

    thread = Thread(target=try_it)
    thread.start()
    thread.join()
    return taken[0]


def _switches() -> dict[str, Any]:
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "multithreading": torch._C._is_multithreading_enabled(),
        "kernels": [getattr(torch._C, f"_get_{name}_sdp_enabled")() for name in _KERNELS],
        "function modes": len(overrides._get_current_function_mode_stack()),
        "dispatch modes": len(dispatch._get_current_dispatch_mode_stack()),
        "is in dispatch mode": dispatch._is_in_torch_dispatch_mode,
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "lifts only": torch._C._only_lift_cpu_tensors(),
    }
