"""Positions of tokens: counted from a mask, and how many a model has.

A model with learned positions has a table of them, and no entry for a token beyond its end. A model
with rotary or relative positions has no such limit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_target_positions",
    "max_encoder_position_embeddings",
    "max_decoder_position_embeddings",
)
"""Names that configurations have for the number of positions."""


def counted(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Count positions from the first token that is no padding on the left.

    A token that is masked elsewhere has a position, as it has where nothing is padded.

    Args:
        mask: [rows, tokens before and of the prompt], 0 for padding.
        length: how many tokens the prompt has; the mask may begin before it, with cached ones.

    Returns:
        Positions, [rows, length].
    """
    padding = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    numbers = torch.arange(mask.shape[-1], device=mask.device)
    return (numbers - padding).clamp(min=0)[..., -length:]


def begins_late(mask: torch.Tensor) -> bool:
    """Tell whether a row may begin with padding; on a GPU that is not looked at, but assumed."""
    if mask.ndim != 2:
        return False
    return mask.device.type != "cpu" or not bool(mask[:, 0].all())


@dataclass(frozen=True, slots=True)
class Table:
    """A table of learned positions.

    Attributes:
        parent: the module that has it.
        name: its name there.
        skipped: how many of its entries stand for no token.
        is_decoders: whether it is of the decoder of an encoder-decoder.
    """

    parent: nn.Module
    name: str
    skipped: int
    is_decoders: bool

    def find_size(self) -> int | None:
        """Return how many tokens it has positions for, None where it is no longer there."""
        table = self.parent._modules.get(self.name) or self.parent._buffers.get(self.name)
        entries = table.weight if isinstance(table, nn.Embedding) else table
        if not isinstance(entries, torch.Tensor):
            return None
        return int(entries.shape[0]) - self.skipped


_WITHOUT_END = frozenset({"tapas"})
"""Model types whose last position is that of all tokens beyond."""

_tables: WeakKeyDictionary[nn.Module, tuple[Table, ...]] = WeakKeyDictionary()


def find_limit(module: nn.Module, *, decoder: bool = False) -> int | None:
    """Return how many tokens a prompt may have, None where nothing is known to limit it.

    Args:
        module: a model of transformers.
        decoder: ask for the tokens that the decoder of an encoder-decoder is given.
    """
    tables = _tables.get(module)
    if tables is None:
        tables = _tables[module] = tuple(_tables_of(module))
    sizes = [one.find_size() for one in tables if one.is_decoders == decoder]
    known = [one for one in sizes if one is not None]
    return min(known) if known and len(known) == len(sizes) else None


def _tables_of(module: nn.Module) -> list[Table]:
    config = getattr(module, "config", None)
    # the tables of a vision model count patches
    if config is None or has_parts(config) or getattr(config, "model_type", None) in _WITHOUT_END:
        return []
    limits = {getattr(config, name, None) for name in _LIMITS}
    has_encoder = bool(getattr(config, "is_encoder_decoder", False))
    found = []
    for path, parent in module.named_modules():
        is_decoders = has_encoder and "decoder" in path.split(".")
        for name, one in (*parent._modules.items(), *parent._buffers.items()):
            if one is None or not ("pos" in name or name == "wpe"):
                continue
            skipped = _skipped(one, limits)
            if skipped is not None:
                found.append(Table(parent, name, skipped, is_decoders))
    return found


def _skipped(table: Any, limits: Collection[Any]) -> int | None:
    """Return how many entries of a table stand for no token; None where it is no such table."""
    if isinstance(table, torch.Tensor):
        # of sines and cosines
        return 0 if table.ndim == 2 and table.shape[0] in limits else None
    if not isinstance(table, nn.Embedding) or _clamps(table):
        return None
    size = table.num_embeddings
    offset = getattr(table, "offset", None)
    if not isinstance(offset, int):
        offset = 0 if table.padding_idx is None else table.padding_idx + 1
    if size in limits or size - offset in limits:
        return offset
    # some models count from 2 on, and have two entries more than they say
    return 2 if size - 2 in limits else None


def _clamps(table: nn.Embedding) -> bool:
    """Tell whether tokens beyond the end of a table have its last position."""
    code = getattr(type(table).forward, "__code__", None)
    return "clamp" in getattr(code, "co_names", ())


def has_parts(config: Any) -> bool:
    """Tell whether a configuration consists of several, as those of images and of text."""
    parts = getattr(type(config), "sub_configs", None)
    return isinstance(parts, Mapping) and bool(parts)
