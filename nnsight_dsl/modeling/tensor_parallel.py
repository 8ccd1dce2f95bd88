"""Tensor parallel models of transformers: which values each process has a part of.

    torchrun --nproc-per-node 2 program.py
    model = LanguageModel(name, distributed_config=DistributedConfig(tp_plan="auto"))

transformers replaces the forward of each split layer. A column-wise layer (`q_proj`, `up_proj`)
returns a part, and a row-wise one (`o_proj`, `down_proj`) takes a part and returns the whole. Taps
gather and split there (`nnsight_dsl/runtime/tapping/sharded.py`). Between the two, parts flow
through activations and norms, of which nothing says what they get: those are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from nnsight_dsl.runtime.errors import InputError
from nnsight_dsl.runtime.tapping.sharded import Split

_INSTALLED = "TensorParallelLayer.install_forward"
"""The function of transformers that replaces a forward, in whose closure the style is."""

_known: WeakKeyDictionary[nn.Module, Mapping[int, Split]] = WeakKeyDictionary()


def splits_of(root: nn.Module) -> Mapping[int, Split]:
    """Return how the values of a model are split over processes, by the id of the module.

    Raises:
        InputError: the model splits values in a way that cannot be made whole.
    """
    found = _known.get(root)
    if found is None:
        found = _known[root] = _found(root)
    return found


def _found(root: nn.Module) -> dict[int, Split]:
    splits: dict[int, Split] = {}
    for parent in root.modules():
        styles = {name: _style_of(one) for name, one in parent.named_children()}
        if not any(styles.values()):
            continue
        own = {name: _split_of(*style) for name, style in styles.items() if style is not None}
        group = next(iter(own.values())).group
        has_parts = any(one.is_on_parts for one in own.values())
        for name, child in parent.named_children():
            if name in own:
                splits[id(child)] = own[name]
            elif has_parts:
                for below in child.modules():
                    splits.setdefault(id(below), Split(group, inside=True, is_known=False))
        if has_parts:
            splits.setdefault(id(parent), Split(group, inside=True))
    if splits and getattr(getattr(root, "config", None), "_attn_implementation", "") == "eager":
        raise InputError(
            "attn_implementation='eager' returns the attention of each head, and a tensor parallel "
            "model has some of the heads in each process; give attn_implementation='sdpa'"
        )
    return splits


def _style_of(module: nn.Module) -> tuple[Any, Any, nn.Module] | None:
    """Return the style of a split layer, its mesh of devices and the layer; None for others."""
    forward = module.__dict__.get("forward")
    if not getattr(forward, "__qualname__", "").startswith(_INSTALLED):
        return None
    around = inspect.getclosurevars(forward).nonlocals
    return around["self"], around["mesh"], module


def _split_of(style: Any, mesh: Any, module: nn.Module) -> Split:
    from torch.distributed.tensor import Replicate, Shard

    group = mesh.get_group()
    kind = type(style).__name__
    last, whole = Shard(-1), Replicate()
    if kind == "ColwiseParallel" and style.output_layouts in (last, whole):
        return Split(group, output=style.output_layouts == last, inside=True)
    if kind == "RowwiseParallel" and style.output_layouts == whole:
        is_split = style.input_layouts == last and not isinstance(module, nn.Embedding)
        return Split(group, input=is_split, inside=True)
    if kind == "SequenceParallel" or Shard(1) in (
        getattr(style, "input_layouts", None),
        getattr(style, "output_layouts", None),
    ):
        raise InputError(
            "this tensor parallel plan splits the tokens of a sequence over processes, whose "
            "values are not made whole; load the model with tp_plan='auto'"
        )
    return Split(group, inside=True, is_known=False)
