"""Layouts: how a tensor is split over the ranks of a model (tensor parallelism).

A rank's part of a tensor does not say how the parts join. The classes of vLLM's layers do: the last
axis is cut into segments, of which each rank holds a part. A column-parallel projection has one
segment, or one for each of the projections merged in it; a fused one has `q`, `k` and `v`, where
several ranks hold the same heads of `k` and `v` if there are fewer heads than ranks.

    rank 0:  q0 k0 v0        a program sees  q0 q1 k0 k1 v0 v1
    rank 1:  q1 k1 v1

A module between a column-parallel and a row-parallel projection (activation, attention, rotary
embedding) is split as its neighbours are. All other values are whole on each rank: the output of a
row-parallel projection, which is summed over the ranks, and so on up to the layer.

A value whose layout is not known is refused with an `EngineError`: a wrong guess would give a
program the right numbers in the wrong order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.transforms.requests import INPUTS

_COLUMNS = ("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear")
_WHOLE = ("VocabParallelEmbedding", "Embedding", "ReplicatedLinear", "LogitsProcessor", "Dropout",
          "Identity")  # fmt: skip
_QKV = {0: 0, 1: 1, 2: 2, "query": 0, "key": 1, "value": 2}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the last axis of a tensor is split over the ranks.

    Attributes:
        segments: for each segment, its width on one rank, and the number of consecutive ranks that
            hold the same part of it.
    """

    segments: tuple[tuple[int, int], ...]

    def joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the parts of all ranks.

        Args:
            parts: the part of each rank, in the order of the ranks.
        """
        pieces: list[torch.Tensor] = []
        start = 0
        for width, copies in self.segments:
            pieces.extend(part.narrow(-1, start, width) for part in parts[::copies])
            start += width
        return torch.cat(pieces, -1)

    def own(self, whole: torch.Tensor, rank: int, world: int) -> torch.Tensor:
        """Cut out the part of one rank.

        Args:
            whole: the joined tensor.
            rank: the rank.
            world: the number of ranks.
        """
        pieces: list[torch.Tensor] = []
        start = 0
        for width, copies in self.segments:
            pieces.append(whole.narrow(-1, start + rank // copies * width, width))
            start += world // copies * width
        return torch.cat(pieces, -1)

    def width(self, world: int) -> int:
        """Return the width of the joined tensor, for a number of ranks."""
        return sum(width * (world // copies) for width, copies in self.segments)


def layout_of(
    module: Any, parent: Any, phase: str, argument: int | str | None, part: torch.Tensor
) -> Layout | None:
    """Return the layout of a module's input or output; None if each rank holds all of it.

    Args:
        module: the module.
        parent: the module around it, in which to look for projections beside it; None for the root.
        phase: `"inputs"` or `"output"`.
        argument: for an input, its position or name; for a tuple returned, the item.
        part: the part of this rank.

    Raises:
        EngineError: the layout is not known, or does not have the width of the part.
    """
    found = _found(module, parent, phase, argument, part)
    if found is not None and sum(width for width, _ in found.segments) != part.shape[-1]:
        raise _unknown(module, phase)
    return found


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module, or one inside it, has weights that are split over ranks."""
    return any(
        getattr(one, "tp_size", 1) > 1 and "ReplicatedLinear" not in _names(one)
        for one in module.modules()
    )


def _found(
    module: Any, parent: Any, phase: str, argument: int | str | None, part: torch.Tensor
) -> Layout | None:
    names = _names(module)
    if "LinearBase" in names:
        return _of_linear(module, names, phase)
    if module._modules:
        if any(_sums_up(one) for one in module.modules()) or not is_sharded(module):
            return None
        raise _unknown(module, phase)
    if names & {*_WHOLE}:
        return None
    beside = [one for one in parent._modules.values() if one is not None] if parent else []
    columns = [one for one in beside if "ColumnParallelLinear" in _names(one) and _is_cut(one)]
    if not columns:
        if any(name.endswith("Norm") for name in names) or _is_activation(module):
            return None
        raise _unknown(module, phase)
    heads = next((one for one in columns if "QKVParallelLinear" in _names(one)), None)
    if heads is not None and "Attention" in names:
        return _of_heads(heads, 0 if phase != INPUTS else _QKV.get(argument or 0), module, phase)
    if heads is not None and "RotaryEmbeddingBase" in names:
        number = {0: None, "positions": None, 1: 0, 2: 1}.get(argument or 0, -1)
        if phase != INPUTS:
            number = {0: 0, 1: 1}.get(argument or 0, -1)  # type: ignore[arg-type]
        return None if number is None else _of_heads(heads, number, module, phase)
    if _is_activation(module):
        if phase == INPUTS and len(columns) == 1:
            return Layout(tuple((width, 1) for width in columns[0].output_partition_sizes))
        rows = [one for one in beside if "RowParallelLinear" in _names(one)]
        if any(part.shape[-1] == one.input_size_per_partition for one in rows):
            return Layout(((part.shape[-1], 1),))
    raise _unknown(module, phase)


def _of_linear(module: Any, names: set[str], phase: str) -> Layout | None:
    if "ReplicatedLinear" in names or module.tp_size == 1:
        return None
    if "RowParallelLinear" in names:
        if phase == INPUTS:
            is_cut = module.input_is_parallel
            return Layout(((module.input_size_per_partition, 1),)) if is_cut else None
        if module.reduce_results:
            return None
        raise _unknown(module, phase)
    if phase == INPUTS or module.gather_output:
        return None
    if module.__class__.__name__ not in _COLUMNS:
        raise _unknown(module, phase)
    copies = getattr(module, "num_kv_head_replicas", 1)
    if "QKVParallelLinear" in names:
        return Layout(tuple(_segments_of_heads(module, copies)))
    return Layout(tuple((width, 1) for width in module.output_partition_sizes))


def _of_heads(heads: Any, number: int | None, module: Any, phase: str) -> Layout:
    segments = _segments_of_heads(heads, heads.num_kv_head_replicas)
    if number is None or not 0 <= number < len(segments):
        raise _unknown(module, phase)
    width, copies = segments[number]
    if phase != INPUTS and "Attention" in _names(module):
        # attention returns one value for each head of the queries
        width = heads.num_heads * heads.v_head_size
    return Layout(((width, copies),))


def _segments_of_heads(heads: Any, copies: int) -> list[tuple[int, int]]:
    return [
        (heads.num_heads * heads.head_size, 1),
        (heads.num_kv_heads * heads.head_size, copies),
        (heads.num_kv_heads * heads.v_head_size, copies),
    ]


def _is_cut(module: Any) -> bool:
    return module.tp_size > 1 and not module.gather_output


def _sums_up(module: Any) -> bool:
    """Return whether a module's output is summed over the ranks, and so whole on each."""
    return "RowParallelLinear" in _names(module) and bool(module.reduce_results)


def _is_activation(module: Any) -> bool:
    home: str = module.__class__.__module__
    return home in ("vllm.model_executor.layers.activation", "torch.nn.modules.activation")


def _names(module: Any) -> set[str]:
    return {cls.__name__ for cls in module.__class__.__mro__}


def _unknown(module: Any, phase: str) -> EngineError:
    return EngineError(
        f"how the {phase} of a {module.__class__.__name__} lies over the workers of an engine "
        "with tensor_parallel_size > 1 is not known, so it cannot be put together; ask for the "
        "value of the module around it, or make the engine with tensor_parallel_size=1"
    )
