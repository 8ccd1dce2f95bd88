"""Padding: which architectures can be padded, and how they count positions in a padded batch.

    with model.trace(["the cat", "the red dog ran"]):         # 2 tokens and 4

Each row of the batch must get the result that it gets alone. The attention mask hides padding from
attention. That suffices if the model counts positions from the first real token, and if nothing but
attention mixes tokens. Three facts are read from the model:

- Does its forward take position ids? Then they are computed from the mask.
- Where do positions start? Embeddings like RoBERTa's compute them from token ids, with a method or
  function of one name, and start behind the index of the padding token. Others have a buffer with
  the position ids that they use by default.
- Does it count by the index in the batch? So does a decoder whose position table gets neither
  position ids nor the mask, such as BART's. It cannot be padded on the left.

Facts that the model does not show (convolutions, recurrent states, a mask that is ignored) are in
the tables below, by model type, with the reason, which is part of the error message.

`tests/equivalence/test_padding_sweep.py` compares padded rows with the rows alone, for every
architecture of transformers that can be made small. It fails if one is wrong, and if one is refused
that would be right.
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
"""By model type, why padding on either side changes the result."""

MIXES_ON_THE_LEFT: Mapping[str, str] = {
    "deepseek_v4": "compresses tokens in groups that are counted from the start of the batch",
    "perceiver": "counts positions by the place in the batch",
    "prophetnet": "counts relative positions by the place in the batch",
    "recurrent_gemma": _IGNORES_MASK,
    "rwkv": _IGNORES_MASK,
}
"""By model type, why padding on the left changes the result."""

MIXES_ON_THE_RIGHT: Mapping[str, str] = {
    "cpmant": "looks for its padding on the left",
}
"""By model type, why padding on the right changes the result."""

_DROPS_MASK = "drops the attention mask when it generates"

GENERATES_UNPADDED: Mapping[str, str] = {
    "flaubert": _DROPS_MASK,
    "git": "counts positions by the place in the batch from its second step on",
    "minimax": "keeps the padding in the state that it generates from",
    "xlm": _DROPS_MASK,
    "xlnet": _DROPS_MASK,
}
"""By model type, why padding changes a generation, but not a single forward."""

_SEES_AHEAD = "gives another output when more tokens follow in its decoder"

DECODES_UNPADDED: Mapping[str, str] = {"fsmt": _SEES_AHEAD, "prophetnet": _SEES_AHEAD}
"""By model type, why the inputs of its decoder must have the same length."""

GENERATES_ALONE: Mapping[str, str] = {
    "rwkv": "mixes the rows of a batch when it generates",
}
"""By model type, why it can generate from one prompt at a time only."""

EAGER: Mapping[str, str] = {
    "hrm_text": "makes no number of a place that sees padding only, with eager attention",
}
"""By model type, why padding changes the result with `attn_implementation="eager"`."""

_NOT_TEXT = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True, slots=True)
class Counting:
    """How a model counts positions.

    Attributes:
        first: the position of the first token.
        padding_id: the token id that it skips when it counts; None if it does not count token ids.
        by_place: True if it counts by the index in the batch and takes no position ids.
    """

    first: int
    padding_id: int | None
    by_place: bool


_known: WeakKeyDictionary[nn.Module, Counting] = WeakKeyDictionary()


def counting_of(module: nn.Module) -> Counting:
    """Return how a model of transformers counts positions; computed once for each model."""
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
    """Return whether a class of embeddings computes positions from token ids, as RoBERTa's does."""
    name = "create_position_ids_from_input_ids"
    return hasattr(cls, name) or hasattr(sys.modules.get(cls.__module__), name)


def _first_of_buffer(embeddings: nn.Module) -> int | None:
    """Return the first position id in the buffer of embeddings; None without such a buffer."""
    ids = getattr(embeddings, "position_ids", None)
    if not isinstance(ids, torch.Tensor) or ids.is_meta or not ids.numel():
        return None
    return int(ids.flatten()[0])


def refusal(module: nn.Module, forward: Keywords, *, left: bool, generates: bool) -> str | None:
    """Return why prompts of unequal length cannot make one batch; None if they can.

    Args:
        module: the model of transformers.
        forward: the keywords that its forward takes.
        left: True if the batch is padded on the left.
        generates: True if the model generates from it.

    Returns:
        The reason, as a predicate of the model's name: "ignores the attention mask".
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
    """Return why decoder inputs of unequal length cannot make one batch; None if they can."""
    for one in model_types(getattr(module, "config", None)):
        if one in DECODES_UNPADDED:
            return DECODES_UNPADDED[one]
    return None


def model_types(config: Any) -> Iterator[str]:
    """Yield the model types in a configuration: that of the model, and of the text models in it."""
    if config is None:
        return
    model_type = getattr(config, "model_type", None)
    if isinstance(model_type, str):
        yield model_type
    for name in ("text_config", "encoder", "decoder"):
        inner = getattr(config, name, None)
        if hasattr(inner, "model_type"):
            yield from model_types(inner)
