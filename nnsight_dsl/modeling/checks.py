"""Checks of token ids, before a model runs on them.

Ids are compared with the size of the embedding where they are on the CPU, since an index that is
out of range ends a process's use of a GPU. Values on a GPU are not looked at, which would wait for
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling import positions
from nnsight_dsl.modeling.inputs import Rows, blaming, wrong_axes
from nnsight_dsl.runtime.errors import InputError

_OF_CHOICES = ("MultipleChoice", "DoubleHeads")
_OF_ROWS = ("SequenceClassification", "MultipleChoice", "NextSentencePrediction")
"""Parts of the names of transformers' classes whose labels are of rows, and not of tokens."""

_MASKS = {"input_ids": "attention_mask", "inputs_embeds": "attention_mask"}
_MASKS["decoder_input_ids"] = "decoder_attention_mask"
"""By the name of the tokens: the name of their mask."""


def check(
    module: nn.Module,
    prompts: Sequence[Mapping[str, Rows]],
    decoded: Sequence[Mapping[str, Rows]],
    *,
    is_traced: bool,
) -> None:
    """Refuse ids that have no embedding, and prompts that have more tokens than positions.

    Args:
        module: a model of transformers.
        prompts: for each input, the arguments with an item for each token of its prompt.
        decoded: for each input, the arguments for the decoder of an encoder-decoder.
        is_traced: whether texts can be cut by `max_length=`, as in a trace.

    Raises:
        InputError: they are not for this model.
    """
    count = count_embeddings(module)
    name = type(module).__name__
    for inputs, is_decoders in ((prompts, False), (decoded, True)):
        limit = positions.find_limit(module, decoder=is_decoders)
        for number, one in enumerate(inputs):
            with blaming(number):
                for key, mask in _MASKS.items():
                    rows = one.get(key)
                    if rows is None:
                        continue
                    if key != "inputs_embeds" and rows[0].ndim > 1 and not takes_choices(module):
                        raise wrong_axes(key, (len(rows), *rows[0].shape))
                    if count is not None and key != "inputs_embeds":
                        _check_range(key, rows, count, name)
                    _check_mask(key, rows, mask, one.get(mask))
                    longest = max(row.shape[0] for row in rows)
                    if limit is not None and longest > limit and not _has_own_places(one):
                        raise InputError(
                            f"{key} has a row of {longest} tokens, and {name} has {limit} "
                            "positions; give a shorter prompt"
                            + (f", or truncation=True, max_length={limit}" if is_traced else "")
                        )


def takes_choices(module: nn.Module) -> bool:
    """Tell whether a model may take ids of shape [rows, choices, tokens]."""
    cls = type(module)
    return not cls.__module__.startswith("transformers.") or _is_named(cls, _OF_CHOICES)


def has_labels_of_rows(module: nn.Module) -> bool:
    """Tell whether the labels of a model are those of rows, as of a classifier of texts."""
    return _is_named(type(module), _OF_ROWS)


def _is_named(cls: type, words: tuple[str, ...]) -> bool:
    return any(word in one.__name__ for one in cls.__mro__ for word in words)


def _check_range(key: str, rows: Rows, count: int, name: str) -> None:
    for number, row in enumerate(rows):
        if row.device.type != "cpu":
            continue
        least, most = (int(one) for one in torch.aminmax(row))
        if least >= 0 and most < count:
            continue
        advice = "mask tokens by attention_mask=, and labels by -100"
        if most >= count:
            advice = (
                "give ids of this model's tokenizer, or write "
                "model.resize_token_embeddings(len(tokenizer))"
            )
        raise InputError(
            f"{key} has the id {most if most >= count else least} in row {number}, and {name} has "
            f"embeddings for 0 to {count - 1}; {advice}"
        )


def _check_mask(key: str, rows: Rows, name: str, mask: Rows | None) -> None:
    """Refuse a mask that ends before its tokens do; one may begin before, with cached tokens."""
    if mask is None or mask[0].ndim != 1:
        return
    if len(mask) not in (1, len(rows)):
        raise InputError(
            f"{name} has {len(mask)} rows, and {key} has {len(rows)}; give a row for each prompt"
        )
    for number, (row, own) in enumerate(zip(rows, mask, strict=False)):
        if own.shape[0] < row.shape[0]:
            raise InputError(
                f"{name} has {own.shape[0]} items in row {number}, and {key} has {row.shape[0]} "
                "tokens; give one for each token"
            )


def count_embeddings(module: nn.Module) -> int | None:
    """Count the embeddings of a model of text; None where ids may stand for anything else."""
    if positions.has_parts(getattr(module, "config", None)):
        return None
    try:
        embedding: Any = module.get_input_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return embedding.weight.shape[0] if isinstance(embedding, nn.Embedding) else None


def _has_own_places(sequences: Mapping[str, Rows]) -> bool:
    """Tell whether positions are given, or a row may begin with padding, which has none."""
    if "position_ids" in sequences:
        return True
    masks = sequences.get("attention_mask", ())
    return any(mask.ndim != 1 or positions.begins_late(mask[None]) for mask in masks)
