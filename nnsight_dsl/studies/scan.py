"""Scanning: running a block on fake tensors, which have shapes and no values.

    with model.scan("Hello"):
        width = model.transformer.h[0].output.shape[-1]

Nothing is computed, and no weights are needed: a model that is not loaded yet is scanned without
loading it. All names that the block binds leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils import _pytree as pytree

from nnsight_dsl.modeling.offload import is_offloaded, leave_out_loading
from nnsight_dsl.runtime.driving.early_stop import StopPoints
from nnsight_dsl.runtime.machines.ambient import restore_state, state_outside
from nnsight_dsl.runtime.record import Record, item_before, restore_item
from nnsight_dsl.runtime.signals import WaitingSignals, begins_fake_run
from nnsight_dsl.studies.dry_run import lend

_stop_points: WeakKeyDictionary[nn.Module, dict[Any, StopPoints | None]] = WeakKeyDictionary()
"""Stop points of each model, by the form of its arguments; None if they cannot be found."""

VALUES_WANTED = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
)
CANNOT_TELL = (
    *VALUES_WANTED,
    fake_tensor.UnsupportedFakeTensorException,
    NotImplementedError,
)
"""Errors that occur on fake tensors alone."""


def faked(module: nn.Module) -> Callable[..., Any]:
    """Return a function that calls the module on fake tensors, with fake weights."""

    def call(*args: Any, **kwargs: Any) -> Any:
        record = Record()
        record.append((restore_state, state_outside()))
        signals = WaitingSignals()
        try:
            signals.begin(record)
            result = in_fake_mode(record, args, kwargs)
        finally:
            try:
                record.undo()
            except BaseException:
                record.undo()
                raise
            finally:
                signals.hand_on(None)
        return result

    @begins_fake_run
    def in_fake_mode(record: Record, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            leave_out_loading(module, record)
            leaves = pytree.tree_leaves((args, kwargs))
            real = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
            device = real[0].device if real else torch.device("cpu")
            is_moved = is_offloaded(module)

            def fake(tensor: torch.Tensor, *, is_placed: bool) -> torch.Tensor:
                if is_placed and not tensor.is_meta:
                    return mode.from_tensor(tensor)
                # not loaded yet, or moved for each call: use the device of the input
                return torch.empty_strided(
                    tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
                )

            def fake_leaf(leaf: Any) -> Any:
                return fake(leaf, is_placed=True) if isinstance(leaf, torch.Tensor) else leaf

            for one in module.modules():
                if isinstance(one, nn.TransformerEncoder) and "use_nested_tensor" in one.__dict__:
                    # nested tensors need the lengths of rows, which fake tensors do not have
                    attributes = one.__dict__
                    before = item_before(attributes, "use_nested_tensor")
                    record.append((restore_item, attributes, "use_nested_tensor", before))
                    attributes["use_nested_tensor"] = False
            lend(module, lambda tensor: fake(tensor, is_placed=not is_moved), record)
            args, kwargs = pytree.tree_map(fake_leaf, (args, kwargs))
            return module(*args, **kwargs)

    return call


def stop_points(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> StopPoints | None:
    """Find where a model can stop, by one run on fake tensors; None if that run fails."""
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    forms = tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves
    )
    key = repr(structure), forms, module.training
    known = _stop_points.setdefault(module, {})
    if key not in known:
        run = faked(module)
        record = Record()
        record.append((torch._C._set_grad_enabled, torch.is_grad_enabled()))
        try:
            torch._C._set_grad_enabled(False)
            known[key] = StopPoints(lambda: run(*args, **kwargs), module, record)
        except Exception:
            # this model's forward depends on more than shapes
            known[key] = None
        finally:
            try:
                record.undo()
            except BaseException:
                record.undo()
                raise
    return known[key]
