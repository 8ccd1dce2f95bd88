"""Positions: counted from an attention mask, and limited by a model's table of positions.

    mask       0 0 1 1 1        two tokens of padding on the left
    positions  0 0 0 1 2

A model with learned positions has a table with one entry for each position. A prompt beyond its end
would raise an index error, or end the process's use of a GPU. `find_limit` finds the table among
the modules and buffers of the model. A model with rotary or relative positions has no such limit.
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
"""Attributes of configurations with the number of positions."""


def counted(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Count positions from the first token behind the padding on the left.

    A token that is masked in another place keeps its position, as in a prompt without padding.

    Args:
        mask: [rows, cached tokens and tokens of the prompt], 0 for padding.
        length: the number of tokens of the prompt.

    Returns:
        Positions of the prompt's tokens, [rows, length], from 0.
    """
    padding = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    numbers = torch.arange(mask.shape[-1], device=mask.device)
    return (numbers - padding).clamp(min=0)[..., -length:]


def begins_late(mask: torch.Tensor) -> bool:
    """Return whether a row may begin with padding; always True on a GPU, to not wait for it."""
    if mask.ndim != 2:
        return False
    return mask.device.type != "cpu" or not bool(mask[:, 0].all())


@dataclass(frozen=True, slots=True)
class Table:
    """A table of positions, learned or of sines and cosines.

    Attributes:
        parent: the module that has it.
        name: its name in the module.
        skipped: the number of entries that are not positions of tokens.
        is_decoders: True if it belongs to the decoder of an encoder-decoder.
    """

    parent: nn.Module
    name: str
    skipped: int
    is_decoders: bool

    def find_size(self) -> int | None:
        """Return the number of tokens that it has positions for; None if it was removed."""
        table = self.parent._modules.get(self.name) or self.parent._buffers.get(self.name)
        entries = table.weight if isinstance(table, nn.Embedding) else table
        if not isinstance(entries, torch.Tensor):
            return None
        return int(entries.shape[0]) - self.skipped


_WITHOUT_END = frozenset({"tapas"})
"""Model types that give all tokens beyond the end the last position."""

_tables: WeakKeyDictionary[nn.Module, tuple[Table, ...]] = WeakKeyDictionary()


def find_limit(module: nn.Module, *, decoder: bool = False) -> int | None:
    """Return the largest number of tokens of a prompt; None if no limit is known.

    Args:
        module: a model of transformers.
        decoder: True for the limit of an encoder-decoder's decoder.
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
    """Return the number of entries that are not positions; None if it is not a position table.

    A table is recognised by its size: one of the numbers that the configuration has for positions,
    or that with a known offset.
    """
    if isinstance(table, torch.Tensor):
        # a buffer of sines and cosines
        return 0 if table.ndim == 2 and table.shape[0] in limits else None
    if not isinstance(table, nn.Embedding) or _clamps(table):
        return None
    size = table.num_embeddings
    offset = getattr(table, "offset", None)
    if not isinstance(offset, int):
        offset = 0 if table.padding_idx is None else table.padding_idx + 1
    if size in limits or size - offset in limits:
        return offset
    # some models count from 2, and have two entries more than their configuration says
    return 2 if size - 2 in limits else None


def _clamps(table: nn.Embedding) -> bool:
    """Return whether a table clamps indices, so that it has a position for any token."""
    code = getattr(type(table).forward, "__code__", None)
    return "clamp" in getattr(code, "co_names", ())


def has_parts(config: Any) -> bool:
    """Return whether a configuration has sub-configurations, such as one of images and text."""
    parts = getattr(type(config), "sub_configs", None)
    return isinstance(parts, Mapping) and bool(parts)
