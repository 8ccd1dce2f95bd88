"""Taps: one for each place that a run looks at.

A tap counts the visits of its module, and offers the run the input before a call and the output
after it, if a machine waits for them. `tapped_class.py` turns a call into a visit. Outside of a
run, nothing of this package is attached to a module.

transformers captures hidden states and attentions by forward hooks. An edit must come before the
capture, so on a module with such hooks the output is offered from a hook placed right before the
first of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import get_ident
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from nnsight_dsl.runtime.errors import CarriedCallError
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.ambient import top_saved_hooks
from nnsight_dsl.runtime.machines.machine import Machine, current_machine
from nnsight_dsl.runtime.values.offers import Skip, skipped_output
from nnsight_dsl.runtime.values.rows import Rows
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, Phase

from .checkpoints import Visit, is_reentrant, offered_in_reentrant, visit_in_regions
from .offering import Looking, Offering
from .tapped_class import install_tap, remove_tap

_WRAPPED = "BackwardHookFunctionBackward"
"""The graph node of an output that torch has wrapped for backward hooks."""

_CAPTURING = "transformers.utils.output_capturing"
"""Module in which transformers defines its output-capturing hooks."""

_all_backward_pre_hooks = torch_module._global_backward_pre_hooks
_all_backward_hooks = torch_module._global_backward_hooks


class _Nobody:
    """The driver of a tap that is in no run; it belongs to no thread."""

    thread = -1


NOBODY: Any = _Nobody()


class Tap:
    """The state of one place in a run: its visits, and the machines that wait there.

    Attributes:
        above: the taps at the places above, from the inside out.
        begun: visits that have begun in this run.
        done: visits that have ended.
        begun_step: last occurrence that has begun: in a generation, the last step with a visit.
        done_step: last occurrence that has ended.
        index: occurrence of the current visit; None if no request can mean it.
        inside: the operations of the module's forward, None until one is asked for.
        in_regions: the current visit, if it is inside of a checkpointed call.
        waiting: machines whose pending request is for this place.
        wants_inputs: True once the driver has parked a machine here that waits for the arguments.
        is_entered: see `Visited`; the tapped class sets and clears it.
        is_beside: True in a run with steps for a module that is not in the one whose calls are
            steps, and counts its visits itself, as the image decoder of a pipeline.
        is_common: True if a visit can do nothing but serve machines that wait for the output. It
            is False for the root, for a module whose calls are steps, and once arguments or
            operations were asked for.
        can_refuse: True if `missing` or `uncovered` may refuse a request: for an operation, or
            after `put_late`.
        skips: replacements for the output of the visit that begins, each for some rows.
        skipped_by, skipped_for: see `Skippable`.
    """

    # defaults are on the class, so that making a tap is cheap
    begun = 0
    done = 0
    begun_step = -1
    done_step = -1
    index: int | None = None
    inside: Looking | None = None
    in_regions: Visit | None = None
    skips: Sequence[Skip] = ()
    skipped_by: int | None = None
    skipped_for: Mapping[Rows, int] = MappingProxyType({})
    wants_inputs = False
    is_common = True
    is_stepping = False
    is_beside = False
    is_entered = False
    can_refuse = False
    _last_unseen: int | None = -1
    """The last step with visits that may have been missed, None if any may."""

    looks_inside = True

    missing: Exception | None = None
    """The error for requests, if the place turned out not to exist."""

    above: Sequence[Tap] = ()

    module: nn.Module
    """The module at the place; set for taps that are kept between runs."""

    def __init__(self, place: Place, driver: Offering, *, is_stepping: bool = False) -> None:
        self.place = place
        self.driver = driver
        self.waiting: list[Machine] = []
        # read at each visit, so set on the instance (see `Driver.__init__`)
        self.is_common, self.can_refuse = type(self).is_common, type(self).can_refuse
        if is_stepping or place is driver.root:
            self.is_common = False
            self.is_stepping = is_stepping

    def install(self) -> None:
        """Let the module offer its values."""
        module = self.place._module
        if module is not None:
            install_tap(self, module)

    def remove(self) -> None:
        """Restore the module; doing so again has no effect."""
        module = self.place._module
        if module is not None:
            remove_tap(module)
        if self.inside is not None:
            self.inside.finish()
            self.inside = None

    def expect(self, port: str) -> None:
        """Get ready for requests of a port."""

    def expect_inside(self) -> None:
        """Get ready for requests of operations inside."""

    def is_awaited(self) -> bool:
        """Return whether a machine waits here or inside, or a watcher wants to see the visit."""
        if self.waiting or (self.inside is not None and self.inside.is_awaited()):
            return True
        return any(watcher.watches(self.place) for watcher in self.driver.watchers)

    def uncovered(self, machine: Machine) -> Exception | None:
        """Return the error for a request whose visit may have been missed, None if it was not."""
        last = self._last_unseen
        if last is not None and machine.step > last:
            return None
        return _not_observed(self.place)

    def put_late(self, step: int | None) -> None:
        """Note that the tap was put during a run, after visits that may have been missed.

        Args:
            step: the step of the generation, None in a run with one forward.
        """
        self.can_refuse, self._last_unseen = True, step

    def begin(self) -> int | None:
        """Count a visit that begins; return its occurrence, None if no request can mean it."""
        driver = self.driver
        has_steps = driver.is_stepped and not self.is_beside
        if has_steps:
            if self.is_stepping:
                driver.begin_step()
            # visits before the first step, as of an encoder, belong to it
            step = max(driver.step, 0)
            index = None if self.begun_step == step else step
            self.begun_step = step
        else:
            index = self.begun
        if driver.visit_waiters:
            # before it counts as begun: a block that waits for it can ask for its input
            driver.begin_visit(self.begun)
        if not has_steps:
            self.begun_step = self.begun
        self.begun += 1
        return index

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, offering its input before and its output after."""
        driver = self.driver
        if driver.is_in_backward:
            return call(module, *args, **kwargs)
        in_regions = None
        if top_saved_hooks(True) is not None:
            in_regions = visit_in_regions(module)
            if in_regions is None:
                return call(module, *args, **kwargs)
        index = self.begin()
        if module is driver.root._module:
            driver.has_grad = torch.is_grad_enabled()
        outer, self.index = self.index, index
        outer_visit, self.in_regions = self.in_regions, in_regions
        try:
            if self.waiting and self.wants_inputs:
                args, kwargs = self._offer(INPUTS, (args, kwargs))
            if self.inside is not None:
                call = self.inside.called(call)
            if self.skips:
                output = skipped_output(self, call, module, args, kwargs, driver.factor)
                if in_regions is not None and self.skipped_by is not None:
                    in_regions.skipped(output)
                output = self._offered(output)
                for key in _capturing_hooks(module):
                    module._forward_hooks[key](module, args, output)
                if driver.watchers:
                    driver.watch(self, args, kwargs, output)
                return output
            capturing = _capturing_hooks(module) if module._forward_hooks else ()
            if capturing:
                output = self._call_captured(call, module, args, kwargs, capturing)
            else:
                output = call(module, *args, **kwargs)
                if self.waiting and _is_hooked_backward(module):
                    output = _editable(output)
                output = self._offered(output)
            if driver.watchers:
                driver.watch(self, args, kwargs, output)
            return output
        finally:
            self.index = outer
            self.in_regions = outer_visit

    def _offer(self, phase: Phase, value: Any) -> Any:
        """Offer a value to the driver, by way of the checkpointed region that it is in, if any."""
        offer = partial(self.driver.offer, self, phase)
        if self.in_regions is not None:
            return self.in_regions.offered(phase, offer, value)
        if self.driver.has_grad and not torch.is_grad_enabled() and is_reentrant():
            return offered_in_reentrant(name_of(self.place, phase), offer, value)
        return offer(value)

    def _offered(self, output: Any) -> Any:
        if self.waiting:
            output = self._offer(OUTPUT, output)
        self.done += 1
        if self.index is not None and self.index > self.done_step:
            self.done_step = self.index
        return output

    def _call_captured(
        self,
        call: Callable[..., Any],
        module: nn.Module,
        args: Any,
        kwargs: Any,
        capturing: Sequence[int],
    ) -> Any:
        """Call a module whose output transformers captures, and offer it right before that."""
        index, is_offered = self.index, False
        user_hooks: OrderedDict[int, Any] = module._forward_hooks
        ordered = OrderedDict((k, hook) for k, hook in user_hooks.items() if k not in capturing)
        ours = max(user_hooks, default=0) + 1_000_000

        def offer(_module: nn.Module, _args: Any, output: Any) -> Any:
            nonlocal is_offered
            # a recursive module reaches this hook for each call
            if is_offered or self.index != index or not self._is_here():
                return None
            is_offered = True
            return self._offered(output)

        ordered[ours] = offer
        ordered.update((k, user_hooks[k]) for k in capturing)
        record = self.driver.record
        depth = len(record)
        record.append((_put_back_hooks, module, user_hooks, ordered, ours))
        try:
            module.__dict__["_forward_hooks"] = ordered
            output = call(module, *args, **kwargs)
        finally:
            record.undo(depth)
        return output if is_offered else self._offered(output)

    def _is_here(self) -> bool:
        return self.driver.thread == get_ident() and current_machine() is None


def _put_back_hooks(
    module: nn.Module, user_hooks: dict[int, Any], ordered: Mapping[int, Any], ours: int
) -> None:
    # hooks that were registered during the call stay registered
    for key, hook in ordered.items():
        if key != ours:
            user_hooks.setdefault(key, hook)
    module.__dict__["_forward_hooks"] = user_hooks


def is_usual_call() -> bool:
    """Return whether a module's call goes straight to its forward: jit is not tracing."""
    return torch._C._get_tracing_state() is None


def is_container(module: Any) -> bool:
    """Return whether a module only holds others and is never called, as `nn.ModuleList` is."""
    cls = type(module)
    return (
        getattr(cls, "forward", None) is nn.Module.forward
        and cls.__call__ is nn.Module.__call__
        and "forward" not in module.__dict__
    )


def _is_hooked_backward(module: nn.Module) -> bool:
    """True if torch wraps the output of a call for backward hooks."""
    return torch.is_grad_enabled() and bool(
        module._backward_hooks
        or module._backward_pre_hooks
        or _all_backward_hooks
        or _all_backward_pre_hooks
    )


def _editable(output: Any) -> Any:
    """Copy tensors that torch has wrapped for backward hooks: views that cannot be edited."""
    if isinstance(output, tuple):
        parts = [_editable(one) for one in output]
        if all(one is part for one, part in zip(output, parts, strict=True)):
            return output
        return tuple(parts) if type(output) is tuple else type(output)(*parts)
    if isinstance(output, torch.Tensor) and type(output.grad_fn).__name__ == _WRAPPED:
        return output.clone()
    return output


def _capturing_hooks(module: nn.Module) -> list[int]:
    return [
        key
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) == _CAPTURING
    ]


def _not_observed(place: Place) -> CarriedCallError:
    path = place._path or "the model"
    return CarriedCallError(
        f"{path} is asked for by code that an object of the model's own brought along, and was not "
        f"watched from the start of this run, so it may have been called already; name {path} in "
        "the block itself, as by reading its output there"
    )
