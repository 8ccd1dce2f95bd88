"""Dry runs: a run of a model beforehand, which leaves no effect behind.

A sweep has to know where its programs write before it runs them together. A run on fake tensors
shows it, but costs far more than the forward of a small model: two of them take 200 ms for a GPT-2
of 12 layers and 64 features, whose forward takes 4 ms. A real forward of one row shows it too. Its
effects are then undone: the dry run computes with copies of the arguments and the buffers, and
afterwards the random state is restored, and so are the caller's values that the programs can
reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.modeling.offload import is_offloaded
from nnsight_dsl.runtime.record import Record, restore_item

_MOST_BYTES = 1 << 24
_MOST_ITEMS = 10_000
"""Limits on the caller's values that are copied; with more, there is no dry run."""


def can_rehearse(module: nn.Module) -> bool:
    """Return whether a dry run can undo all effects of a model's forward.

    In training a forward may be meant to change the model, in ways not known here.
    """
    return not is_offloaded(module) and not any(one.training for one in module.modules())


def rehearsed(module: nn.Module) -> Callable[..., Any]:
    """Return a function that calls a module without a lasting effect on it or its arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        tensors = [one for one in pytree.tree_leaves((args, kwargs)) if _is_tensor(one)]
        devices = {one.device for one in tensors if one.is_cuda}
        copies = {id(one): one.clone() for one in module.buffers()}
        record = Record()
        for device in devices:
            record.append((torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device))
        record.append((torch.set_rng_state, torch.get_rng_state()))
        try:
            lend(module, lambda one: copies.get(id(one), one), record)
            return module(*args, **kwargs)
        finally:
            try:
                record.undo()
            except BaseException:
                record.undo()
                raise

    return call


def lend(module: nn.Module, other: Callable[[torch.Tensor], torch.Tensor], record: Record) -> None:
    """Replace a module's parameters and buffers by other tensors, until the record is undone.

    Each module gets new tables meanwhile, so that its original ones are not touched.
    """
    for one in module.modules():
        own = one.__dict__
        for table in ("_parameters", "_buffers"):
            before: dict[str, torch.Tensor | None] = own[table]
            if before:
                record.append((restore_item, own, table, before))
                own[table] = {
                    name: None if tensor is None else other(tensor)
                    for name, tensor in before.items()
                }


class Belongings:
    """The caller's containers and tensors that programs can reach, with their contents."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
        self._bytes = self._items = 0
        self.is_complete = True
        for value in values:
            self._add(value)

    def _add(self, value: Any) -> None:
        kind = type(value)
        if id(value) in self._containers or id(value) in self._tensors:
            return
        if kind in (tuple, list, set, dict):
            self._items += len(value)
            if self._items > _MOST_ITEMS:
                self.is_complete = False
                return
            if kind is not tuple:
                self._containers[id(value)] = value, value.copy()
            for one in value.values() if kind is dict else value:
                self._add(one)
        elif _is_tensor(value):
            self._bytes += value.nbytes
            if self._bytes > _MOST_BYTES:
                self.is_complete = False
                self._tensors.clear()
            elif not value.is_inference():
                copy = value.detach().clone()
                self._tensors[id(value)] = value, value._version, copy

    def put_back(self) -> None:
        """Restore the contents of those that have changed."""
        for container, before in self._containers.values():
            if type(container) is list:
                container[:] = before
            else:
                container.clear()
                container.update(before)
        with torch.no_grad():
            for tensor, version, copy in self._tensors.values():
                if tensor._version != version:
                    tensor.copy_(copy)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
