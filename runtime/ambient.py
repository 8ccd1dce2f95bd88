"""The state around a block: grad mode, inference mode, autocast, function and dispatch modes.

A block runs in the state of the place that serves it. What the block itself changes, by a
`with torch.no_grad():` that is open while the block waits, must hold for the block only: it is
taken off when the machine stops to wait and put back before it goes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch as dispatch

_DEVICES = ("cpu", "cuda")


def _switches() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        *(torch.is_autocast_enabled(device) for device in _DEVICES),
        *(torch.get_autocast_dtype(device) for device in _DEVICES),
    )


def _set_switches(values: tuple[Any, ...]) -> None:
    torch.set_grad_enabled(values[0])
    for device, enabled, dtype in zip(_DEVICES, values[1:3], values[3:5], strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


class Ambient:
    """The state that a waiting machine has changed, kept aside while the model runs."""

    __slots__ = ("_changes", "_dispatch_modes", "_function_modes", "_guard", "_outside")

    def __init__(self) -> None:
        self._changes: dict[int, Any] = {}
        self._function_modes: list[Any] = []
        self._dispatch_modes: list[Any] = []
        self._guard: Any = None
        self._outside: tuple[Any, ...] = ()

    def enter(self) -> tuple[int, int, bool]:
        """Note the state outside, put the machine's own changes back; return what `leave` needs."""
        depth = len(overrides._get_current_function_mode_stack())
        dispatch_depth = len(dispatch._get_current_dispatch_mode_stack())
        self._outside = _switches()
        inference = torch.is_inference_mode_enabled()
        guarded = self._guard is not None
        self._guard = None  # its end puts inference mode back to the machine's own
        if self._changes or guarded:
            _set_switches(
                tuple(self._changes.get(i, value) for i, value in enumerate(self._outside))
            )
        for mode in self._function_modes:
            overrides._push_mode(mode)
        for mode in self._dispatch_modes:
            dispatch._push_mode(mode)
        return depth, dispatch_depth, inference

    def leave(self, before: tuple[int, int, bool], *, is_set: bool) -> None:
        """Take off what the machine has changed and not undone.

        With `is_set` the machine stands in a `with` that sets a state, and keeps all of it, also
        what is the same outside now: it need not be so where the machine goes on.
        """
        depth, dispatch_depth, inference = before
        self._function_modes = overrides._get_current_function_mode_stack()[depth:]
        for _ in self._function_modes:
            overrides._pop_mode()
        self._dispatch_modes = dispatch._get_current_dispatch_mode_stack()[dispatch_depth:]
        for _ in self._dispatch_modes:
            dispatch._pop_mode()
        now = _switches()
        self._changes = {
            i: mine
            for i, (mine, theirs) in enumerate(zip(now, self._outside, strict=True))
            if is_set or mine != theirs
        }
        if torch.is_inference_mode_enabled() != inference:
            self._guard = torch._C._InferenceMode(inference)
            _set_switches(self._outside)
        elif self._changes:
            _set_switches(self._outside)
