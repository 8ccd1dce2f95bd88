"""The ambient state of a block, as `with` statements of torch set it.

That is grad mode, inference mode, autocast, function and dispatch modes, the kernels that attention
may use, and the hooks on tensors that autograd saves.

A block runs in the state of the place that serves it. A change that the block makes, such as a
`with torch.no_grad():` that is open while the block waits, must hold for the block only: it is
removed when the machine is parked and restored before the machine is resumed.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import torch
from torch import overrides
from torch.utils import _python_dispatch as dispatch

from nnsight_dsl.runtime.record import is_interrupt

_DEVICES = ("cpu", "cuda")
_KERNELS = ("flash", "mem_efficient", "math", "cudnn")
_kernels_enabled = tuple(getattr(torch._C, f"_get_{name}_sdp_enabled") for name in _KERNELS)
_enable_kernel = tuple(getattr(torch._C, f"_set_sdp_use_{name}") for name in _KERNELS)
_flash, _efficient, _math, _cudnn = _kernels_enabled

_SavedHooks = tuple[Any, Any] | None
top_saved_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_push_saved_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_saved_hooks = torch._C._autograd._pop_saved_tensors_default_hooks


def _switches() -> tuple[Any, ...]:
    # written out, since this is run twice each time a machine is advanced
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cpu"),
        torch.get_autocast_dtype("cuda"),
        _flash(),
        _efficient(),
        _math(),
        _cudnn(),
    )


def _set_switches(values: tuple[Any, ...]) -> None:
    torch.set_grad_enabled(values[0])
    for device, enabled, dtype in zip(_DEVICES, values[1:3], values[3:5], strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    for enable, value in zip(_enable_kernel, values[5:], strict=True):
        enable(value)


def saved_hooks_over(outside: _SavedHooks) -> list[tuple[Any, Any]]:
    """Pop the saved-tensor hooks above some given ones; return them, topmost first."""
    found = []
    while (top := top_saved_hooks(True)) is not None and not _are_same(top, outside):
        found.append(top)
        _pop_saved_hooks()
    return found


def put_saved_hooks(hooks: list[tuple[Any, Any]]) -> None:
    """Push saved-tensor hooks again, given topmost first."""
    for pack, unpack in reversed(hooks):
        _push_saved_hooks(pack, unpack)


def _are_same(one: _SavedHooks, other: _SavedHooks) -> bool:
    return one is not None and other is not None and one[0] is other[0] and one[1] is other[1]


StateOutside: TypeAlias = "tuple[tuple[Any, ...], bool, list[Any], list[Any], _SavedHooks, _Flags]"
_Flags: TypeAlias = "tuple[tuple[Any, ...], tuple[Any, ...]]"

_MODE_FLAGS = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)
"""Variables that torch.utils._python_dispatch keeps beside its mode stack, as of torch 2.13."""

_FAKE_FLAGS = (
    (torch._C._only_lift_cpu_tensors, torch._C._set_only_lift_cpu_tensors),
    (torch._C._meta_in_tls_dispatch_include, torch._C._set_meta_in_tls_dispatch_include),
)
"""Getter and setter of each flag that FakeTensorMode switches."""


def state_outside() -> StateOutside:
    """Return the state of torch around a run, for `restore_state`."""
    return (
        _switches(),
        torch.is_inference_mode_enabled(),
        overrides._get_current_function_mode_stack(),
        dispatch._get_current_dispatch_mode_stack(),
        top_saved_hooks(True),
        (
            tuple(getattr(dispatch, name, None) for name in _MODE_FLAGS),
            tuple(read() for read, _ in _FAKE_FLAGS),
        ),
    )


_kept: list[Any] = []
"""Guards that restore inference mode after runs interrupted while torch changed it."""


def restore_state(outside: StateOutside) -> None:
    """Restore torch's state where an interrupt kept a `with` statement from doing so."""
    switches, inference, function_modes, dispatch_modes, saved_hooks, (flags, fake) = outside
    while len(overrides._get_current_function_mode_stack()) > len(function_modes):
        overrides._pop_mode()
    _restore_dispatch_modes(dispatch_modes)
    for name, value in zip(_MODE_FLAGS, flags, strict=True):
        if value is not None:
            setattr(dispatch, name, value)
    for (_, write), value in zip(_FAKE_FLAGS, fake, strict=True):
        write(value)
    saved_hooks_over(saved_hooks)
    if torch.is_inference_mode_enabled() != inference:
        _kept.append(torch._C._InferenceMode(inference))
    _set_switches(switches)


def restore_after_interrupt(outside: StateOutside, failure: BaseException | None) -> None:
    """Restore torch's state if an interrupt ended the run, or is propagating now."""
    if is_interrupt(failure) or is_interrupt(sys.exception()):
        restore_state(outside)


def _restore_dispatch_modes(before: list[Any]) -> None:
    now = dispatch._get_current_dispatch_mode_stack()
    if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
        return
    for mode in now:
        # torch's own modes have one slot each, and are not popped
        key = getattr(mode, "_mode_key", None)
        if key is None:
            dispatch._pop_mode()
        else:
            torch._C._unset_dispatch_mode(key)
    for mode in before:
        dispatch._push_mode(mode)


class Ambient:
    """The state changes of a waiting machine, set aside while the model runs."""

    __slots__ = (
        "_changes",
        "_dispatch_modes",
        "_function_modes",
        "_guard",
        "_outside",
        "_outside_hooks",
        "_saved_hooks",
    )

    def __init__(self) -> None:
        self._changes: dict[int, Any] = {}
        self._function_modes: list[Any] = []
        self._dispatch_modes: list[Any] = []
        self._guard: Any = None
        self._outside: tuple[Any, ...] = ()
        self._saved_hooks: list[tuple[Any, Any]] = []
        self._outside_hooks: _SavedHooks = None

    def enter(self) -> tuple[int, int, bool]:
        """Note the state outside, apply the machine's changes; return the argument of `leave`."""
        depth = len(overrides._get_current_function_mode_stack())
        dispatch_depth = len(dispatch._get_current_dispatch_mode_stack())
        self._outside = _switches()
        inference = torch.is_inference_mode_enabled()
        guarded = self._guard is not None
        self._guard = None  # dropping the guard restores the machine's inference mode
        if self._changes or guarded:
            _set_switches(
                tuple(self._changes.get(i, value) for i, value in enumerate(self._outside))
            )
        for mode in self._function_modes:
            overrides._push_mode(mode)
        for mode in self._dispatch_modes:
            dispatch._push_mode(mode)
        self._outside_hooks = top_saved_hooks(True)
        if self._saved_hooks:
            put_saved_hooks(self._saved_hooks)
        return depth, dispatch_depth, inference

    def leave(self, before: tuple[int, int, bool], *, is_set: bool) -> None:
        """Remove the changes that the machine has made and not undone.

        With `is_set` the machine is inside a `with` that sets a state. It then keeps all switches,
        even those equal outside now: they may differ where the machine is resumed.
        """
        depth, dispatch_depth, inference = before
        self._function_modes = overrides._get_current_function_mode_stack()[depth:]
        for _ in self._function_modes:
            overrides._pop_mode()
        self._dispatch_modes = dispatch._get_current_dispatch_mode_stack()[dispatch_depth:]
        for _ in self._dispatch_modes:
            dispatch._pop_mode()
        self._saved_hooks = saved_hooks_over(self._outside_hooks)
        self._outside_hooks = None
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
