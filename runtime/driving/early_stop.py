"""Early stopping, `stop="auto"`: the forward ends where the last block does.

It stops only where the blocks hold the values that they would hold after the whole forward. A
model may later edit a value in place that a block has been handed, as `relu(inplace=True)` edits
the output of the layer before it: to stop before that would leave the block with another value.
Where a model does so is found by one recorded forward, without any block (`StopPoints`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.runtime.locations import Place, ancestors
from nnsight_dsl.runtime.record import Record, restore_item
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, Phase

from .driver import Driver

_HOOKS = (
    "_forward_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
"""Where torch.nn.Module keeps the hooks of a forward, as of torch 2.13."""


class Stopping(Driver):
    """A run that may end once all of its machines have ended.

    Attributes:
        points: places where the forward may stop; None lets it run to its end.
        last: place and phase at which the last machine ended, None if no value was on offer then.
    """

    stops_itself = True

    def __init__(self, root: Place, stepping: Place | None = None) -> None:
        super().__init__(root, stepping)
        self.points: StopPoints | None = None
        self.last: tuple[Place, str] | None = None

    def may_stop(self) -> bool:
        """Return whether the rest of the forward can be left out."""
        if super().may_stop():
            return True
        offer = self._offer
        is_needed = any(not machine.is_done for machine in self.machines) or bool(self.watchers)
        if is_needed or offer is None or self.is_stepped:
            return False
        self.last = offer.tap.place, offer.phase
        if self.points is None or offer.index != 0 or self.own_calls:
            return False
        return self.points.has(self._path_in_run(offer.tap.place), offer.phase)

    def _path_in_run(self, place: Place) -> str:
        """Return the path of a place from the module that runs, which may be a part of a model."""
        top = next((one for one in ancestors(place) if self._is_top(one)), None)
        above = "" if top is None else top._path
        return place._path.removeprefix(above).removeprefix(".")


class StopPoints:
    """The places after which a forward edits no earlier value in place, so that it can stop there.

    Args:
        run: calls the model once, on fake tensors.
        module: the model.
        record: receives the user's hooks, which are removed during the call.
    """

    def __init__(self, run: Callable[[], Any], module: nn.Module, record: Record) -> None:
        self._time = 0
        self._points: dict[tuple[str, str], int] = {}
        self._first_seen: dict[int, int] = {}
        self._tensors: dict[int, tuple[torch.Tensor, int]] = {}
        self._edited: list[tuple[int, int]] = []
        # the user's hooks must not run an extra time
        depth = len(record)
        try:
            for one in module.modules():
                own = one.__dict__
                for name in _HOOKS:
                    if name in own:
                        record.append((restore_item, own, name, own[name]))
                        own[name] = OrderedDict()
            for path, one in module.named_modules(remove_duplicate=False):
                self._watch(path, one)
            run()
            self._pass(())
        finally:
            record.undo(depth)
            # the forward's values are not kept alive
            self._tensors.clear()

    def has(self, path: str, phase: Phase) -> bool:
        """Return whether the forward can stop at the first visit to a place."""
        time = self._points.get((path, phase))
        return time is not None and not any(seen <= time < edited for seen, edited in self._edited)

    def _watch(self, path: str, module: nn.Module) -> None:
        def before(_module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            self._pass((args, kwargs))
            self._points.setdefault((path, INPUTS), self._time)

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self._pass(output)
            self._points.setdefault((path, OUTPUT), self._time)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)

    def _pass(self, values: Any) -> None:
        """Record the edits since the last call, then note the values that are seen now."""
        self._time += 1
        for key, (tensor, version) in self._tensors.items():
            if tensor._version != version:
                self._edited.append((self._first_seen[key], self._time))
                self._tensors[key] = tensor, tensor._version
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, torch.Tensor):
                key = leaf.untyped_storage()._cdata
                # kept alive, so that the storage's identity is not reused
                self._tensors.setdefault(key, (leaf, leaf._version))
                self._first_seen.setdefault(key, self._time)
