"""Padding: which architectures may be padded, and how positions are counted beside it.

    with model.trace(["the cat", "the red dog ran"]):         # 2 tokens and 4

Each row of the batch has to get what it gets alone. What is before or behind its tokens is hidden
from them by the attention mask; what is left is that an architecture counts its positions right,
and that nothing but attention goes from one place to another. Three facts are found in the model:

- whether its forward takes position ids: they are counted from the mask;
- where they start: the embeddings of RoBERTa and its like make positions out of token ids, by a
  method or function of one name, and begin behind the index of the padding; others have a buffer
  of the position ids that they use by themselves;
- whether it counts by the place in the batch: a decoder whose table of positions is given neither
  position ids nor the mask, as that of BART.

What the model does not show is in the tables below, with the reason. The test
`tests/equivalence/test_padding_sweep.py` compares every architecture of transformers that can be
made small with the rows alone; it fails where one is wrong, and where one is refused without need.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from nnsight_dsl.modeling.keywords import Keywords, is_used, keywords_of

_IGNORES_MASK = "ignores the attention mask"
_CONVOLVES = "mixes neighbouring tokens without the attention mask"
_ALL_PLACES = "computes its attention from all places of the batch, the padding included"

MIXES: Mapping[str, str] = {
    "canine": _CONVOLVES,
    "convbert": _CONVOLVES,
    "funnel": "pools tokens in groups that are counted from the start of the batch",
    "mobilebert": _CONVOLVES,
    "nystromformer": _ALL_PLACES,
    "reformer": "sorts tokens into chunks that are counted from the start of the batch",
    "yoso": _ALL_PLACES,
}
"""By model type, why padding reaches the tokens beside it."""

MIXES_ON_THE_LEFT: Mapping[str, str] = {
    "deepseek_v4": "compresses tokens in groups that are counted from the start of the batch",
    "perceiver": "counts positions by the place in the batch",
    "prophetnet": "counts relative positions by the place in the batch",
    "recurrent_gemma": _IGNORES_MASK,
    "rwkv": _IGNORES_MASK,
}
"""By model type, why padding reaches the tokens behind it."""

MIXES_ON_THE_RIGHT: Mapping[str, str] = {
    "cpmant": "looks for its padding on the left",
}
"""By model type, why padding reaches the tokens before it."""

_DROPS_MASK = "drops the attention mask when it generates"

GENERATES_UNPADDED: Mapping[str, str] = {
    "flaubert": _DROPS_MASK,
    "git": "counts positions by the place in the batch from its second step on",
    "minimax": "keeps the padding in the state that it generates from",
    "xlm": _DROPS_MASK,
    "xlnet": _DROPS_MASK,
}
"""By model type, why its generation goes wrong where a forward does not."""

_SEES_AHEAD = "gives another output when more tokens follow in its decoder"

DECODES_UNPADDED: Mapping[str, str] = {"fsmt": _SEES_AHEAD, "prophetnet": _SEES_AHEAD}
"""By model type, why inputs of its decoder have to be of equal length."""

GENERATES_ALONE: Mapping[str, str] = {
    "rwkv": "mixes the rows of a batch when it generates",
}
"""By model type, why it generates from one prompt only."""

EAGER: Mapping[str, str] = {
    "hrm_text": "makes no number of a place that sees padding only, with eager attention",
}
"""By model type, why padding shows with `attn_implementation="eager"`."""

_NOT_TEXT = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True, slots=True)
class Counting:
    """How a model counts positions.

    Attributes:
        first: the position of the first token.
        padding_id: the token id that it takes for padding when it counts, None if it takes none.
        by_place: whether it counts by the place in the batch and cannot be told otherwise.
    """

    first: int
    padding_id: int | None
    by_place: bool


_known: WeakKeyDictionary[nn.Module, Counting] = WeakKeyDictionary()


def counting_of(module: nn.Module) -> Counting:
    """Return how a model of transformers counts positions."""
    found = _known.get(module)
    if found is None:
        found = _known[module] = _counting_of(module)
    return found


def _counting_of(module: nn.Module) -> Counting:
    first, padding_id = 0, None
    tables = []
    for path, one in module.named_modules():
        if any(part.startswith(_NOT_TEXT) for part in path.split(".")):
            continue
        if "Position" in type(one).__name__:
            tables.append(inspect.signature(type(one).forward).parameters)
        elif not hasattr(one, "position_embeddings"):
            continue
        index = getattr(one, "padding_idx", None)
        if isinstance(index, int) and _counts_token_ids(type(one)):
            first, padding_id = index + 1, index
        elif padding_id is None and (given := _first_of_buffer(one)) is not None:
            first = given
    by_place = "position_ids" not in keywords_of(module) and any(
        "past_key_values_length" in one and "attention_mask" not in one for one in tables
    )
    return Counting(first, padding_id, by_place)


def _counts_token_ids(cls: type) -> bool:
    """Tell whether embeddings make positions out of token ids, by a method or by a function."""
    name = "create_position_ids_from_input_ids"
    return hasattr(cls, name) or hasattr(sys.modules.get(cls.__module__), name)


def _first_of_buffer(embeddings: nn.Module) -> int | None:
    """Return the first of the position ids that embeddings use where they are given none."""
    ids = getattr(embeddings, "position_ids", None)
    if not isinstance(ids, torch.Tensor) or ids.is_meta or not ids.numel():
        return None
    return int(ids.flatten()[0])


def refusal(module: nn.Module, forward: Keywords, *, left: bool, generates: bool) -> str | None:
    """Say why prompts of unequal length cannot make one batch; None if they can.

    Args:
        module: the model of transformers.
        forward: the keywords that its forward takes.
        left: whether the batch is padded on the left.
        generates: whether the model generates from it.

    Returns:
        What the model does, as the end of a sentence.
    """
    types = set(model_types(getattr(module, "config", None)))
    reasons = dict(MIXES)
    reasons |= MIXES_ON_THE_LEFT if left else MIXES_ON_THE_RIGHT
    if generates:
        reasons |= GENERATES_UNPADDED
    if getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager":
        reasons |= EAGER
    for one in sorted(types & reasons.keys()):
        return reasons[one]
    takes_mask = "attention_mask" in forward
    if not (takes_mask or (forward.is_open and is_used(module, "attention_mask"))):
        return _IGNORES_MASK
    if left and counting_of(module).by_place:
        return "counts positions by the place in the batch"
    return None


def refusal_of_decoded(module: nn.Module) -> str | None:
    """Say why inputs of a decoder of unequal length cannot make one batch; None if they can."""
    for one in model_types(getattr(module, "config", None)):
        if one in DECODES_UNPADDED:
            return DECODES_UNPADDED[one]
    return None


def model_types(config: Any) -> Iterator[str]:
    """Iterate over the types of a model and of the text models in it."""
    if config is None:
        return
    model_type = getattr(config, "model_type", None)
    if isinstance(model_type, str):
        yield model_type
    for name in ("text_config", "encoder", "decoder"):
        inner = getattr(config, name, None)
        if hasattr(inner, "model_type"):
            yield from model_types(inner)
