"""Checks of token ids before a run, with errors that name the input.

An index out of range raises an unhelpful error on the CPU, and on a GPU a device-side assert, after
which the process cannot use the GPU any more. So three things are checked before the model runs:

- ids are in the range of the embedding: `input_ids has the id 60000 in row 0, and ...`;
- a mask is at least as long as its tokens;
- a prompt is not longer than the model's table of positions.

Ids on a GPU are not compared with the embedding, since reading them would wait for the GPU. Neither
are those of a model whose ids may mean other things than rows of its embedding, such as images.
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
_OF_ROWS = (
    "SequenceClassification", "MultipleChoice", "NextSentencePrediction", "ImageClassification",
    "AudioClassification", "VideoClassification",
)  # fmt: skip
"""Parts of the names of transformers' classes that have a label for each row, not each token."""

_MASKS = {"input_ids": "attention_mask", "inputs_embeds": "attention_mask"}
_MASKS["decoder_input_ids"] = "decoder_attention_mask"
"""Names of token arguments, with the names of their masks."""


def check(
    module: nn.Module,
    prompts: Sequence[Mapping[str, Rows]],
    decoded: Sequence[Mapping[str, Rows]],
    *,
    is_traced: bool,
) -> None:
    """Check the token ids, the masks and the lengths of all inputs.

    Args:
        module: a model of transformers.
        prompts: for each input, the arguments with an item for each token of its prompt.
        decoded: for each input, the arguments for the decoder of an encoder-decoder.
        is_traced: True in a trace, where `max_length=` is the tokenizer's and can cut a text.

    Raises:
        InputError: an id has no embedding, a mask is too short, or a prompt has more tokens than
            the model has positions.
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
    """Return whether a model may take ids of shape [rows, choices, tokens]."""
    cls = type(module)
    return not cls.__module__.startswith("transformers.") or _is_named(cls, _OF_CHOICES)


def has_labels_of_rows(module: nn.Module) -> bool:
    """Return whether a model has one label for each row, as a text classifier has."""
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
    """Refuse a mask that is shorter than its tokens; it may be longer, by cached tokens."""
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
    """Return the number of embeddings; None if the model's ids may mean anything else."""
    if positions.has_parts(getattr(module, "config", None)):
        return None
    try:
        embedding: Any = module.get_input_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return embedding.weight.shape[0] if isinstance(embedding, nn.Embedding) else None


def _has_own_places(sequences: Mapping[str, Rows]) -> bool:
    """Return whether a row of n tokens may need fewer than n positions.

    That is so if positions are given, or a row may begin with padding, which has no position.
    """
    if "position_ids" in sequences:
        return True
    masks = sequences.get("attention_mask", ())
    return any(mask.ndim != 1 or positions.begins_late(mask[None]) for mask in masks)
