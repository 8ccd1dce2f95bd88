"""From the inputs of a trace to one call of a language model.

    with model.trace() as tracer:
        with tracer.invoke("the cat"):              # 2 tokens
            ...
        with tracer.invoke("the red dog ran"):      # 4 tokens: input_ids is [2, 4]
            ...

1. Keywords are split into those of the tokenizer and those of the model (`options.py`).
2. Prompts become arguments (`prompts.py`), and arguments become rows (`batching.rows_of`).
3. Ids, masks and lengths are checked (`checks.py`).
4. Rows are padded so that each gets the result that it gets alone (`batching.py`, `padding.py`):
   causal models on the left, with position ids counted from the attention mask.

An architecture that cannot be padded refuses prompts of unequal length with a `BatchingError`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight_dsl.modeling import batching, checks, padding, positions
from nnsight_dsl.modeling.architecture import Architecture
from nnsight_dsl.modeling.inputs import Rows, blaming
from nnsight_dsl.modeling.prompts import Given, all_given
from nnsight_dsl.runtime.errors import BatchingError, InputError
from nnsight_dsl.tracing.runnable import Batch, Input


@dataclass(frozen=True, slots=True)
class _Parted:
    """The arguments of all inputs, split into those per token and those per row.

    Attributes:
        given: the inputs, tokenized.
        sequences: for each input, the arguments with an item for each token of its prompt.
        decoded: for each input, those with an item for each token of the decoder.
        others: for each input, the rest.
    """

    given: Sequence[Given]
    sequences: Sequence[dict[str, Rows]]
    decoded: Sequence[dict[str, Rows]]
    others: Sequence[Mapping[str, Any]]


def merge(
    model: Architecture,
    inputs: Sequence[Input],
    function: str,
    options: Mapping[str, Any],
    device: torch.device,
) -> Batch:
    """Merge the inputs of all invokes into the arguments of one call.

    Args:
        model: the model to be called.
        inputs: for each invoke, the input that the user gave.
        function: `"trace"` or `"generate"`.
        options: keywords of the trace.
        device: where the tensors of the call are put.

    Returns:
        The call's arguments, and the number of rows of each invoke.

    Raises:
        BatchingError: the inputs do not fit into one call.
        InputError: one of the inputs is not one that the model runs on.
    """
    known = model.options_of(function)
    for_texts: dict[str, Any] = {}
    if options:
        for_texts, options = known.parted(options)
    parted = _parted(model, all_given(inputs, known, for_texts, model.main_input))
    prompts = [batching.find_prompt(one) for one in parted.sequences]
    found = [one for one in prompts if one is not None]
    if found:
        if len(found) < len(prompts):
            _refuse_mixed(model, parted, prompts)
        counts = tuple(map(len, found))
        checks.check(model.inner, parted.sequences, parted.decoded, is_traced=function == "trace")
        joined = batching.joined(parted.others, counts, options)
        _check_labels_of_rows(parted, counts)
        merged = _merged_prompts(model, parted, found, function, {**options, **joined})
    else:
        counts = tuple(_count_without_tokens(model, parted, i) for i in range(len(prompts)))
        joined = batching.joined(parted.others, counts, options)
        merged = _stacked(parted.sequences)
    if model.has_encoder:
        merged |= batching.padded_for_decoder(
            parted.decoded,
            model.pad_id,
            is_continued=function == "generate",
            refusal=padding.refusal_of_decoded(model.inner),
        )
    # the order matters: the first argument, the token ids, is the root's `.input`
    kwargs = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in {**merged, **joined}.items()
    }
    kwargs.update((key, options[key]) for key in options if key not in joined)
    if function == "generate":
        model.check_can_generate(sum(counts))
        _set_padding(model, kwargs)
    return Batch((), kwargs, counts)


def _parted(model: Architecture, given: Sequence[Given]) -> _Parted:
    for_decoder = list(batching.DECODED) if model.has_encoder else []
    for_prompt = [key for key in batching.SEQUENCES if key not in for_decoder]
    if any(one.get("labels") is not None for one in given) and checks.has_labels_of_rows(
        model.inner
    ):
        for_decoder = [key for key in for_decoder if key != "labels"]
        for_prompt = [key for key in for_prompt if key != "labels"]
        batching.make_labels_of_rows(given)
    for key in batching.OF_ROWS[1:]:
        if any(one.get(key) is not None for one in given):
            batching.make_labels_of_rows(given, key)
    return _Parted(
        given,
        [_rows_in(number, one, for_prompt) for number, one in enumerate(given)],
        [_rows_in(number, one, for_decoder) for number, one in enumerate(given)],
        [
            {key: one[key] for key in one if key not in for_prompt and key not in for_decoder}
            for one in given
        ],
    )


def _check_labels_of_rows(parted: _Parted, counts: Sequence[int]) -> None:
    """Refuse labels of rows that are more or fewer than the rows.

    Raises:
        InputError: an input has such labels.
    """
    for number, (one, count) in enumerate(zip(parted.others, counts, strict=True)):
        for key in batching.OF_ROWS[1:]:
            value = one.get(key)
            if isinstance(value, torch.Tensor) and len(value) != count:
                with blaming(number):
                    raise InputError(
                        f"{key} has {len(value)} items, and the input has {count} rows; give one "
                        "for each row"
                    )


def _rows_in(number: int, given: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Rows]:
    with blaming(number):
        return {
            key: batching.rows_of(key, given[key]) for key in keys if given.get(key) is not None
        }


# inputs without tokens


def _refuse_mixed(model: Architecture, parted: _Parted, prompts: Sequence[Rows | None]) -> None:
    """Some invokes have tokens and others have none."""
    for number, prompt in enumerate(prompts):
        if prompt is None:
            _count_without_tokens(model, parted, number)
    raise BatchingError(
        "one invoke has tokens and another one has none, and one batch has them for all rows or "
        "for none; trace them one by one"
    )


def _count_without_tokens(model: Architecture, parted: _Parted, number: int) -> int:
    """Count the rows of an input by its other arguments, as images.

    Raises:
        InputError: there are none.
    """
    decoded = parted.decoded[number]
    count = batching.find_count(parted.others[number], model.main_input)
    if count is None and "decoder_input_ids" in decoded:
        count = len(decoded["decoder_input_ids"])
    if count is not None:
        return count
    with blaming(number):
        raise InputError(
            "this input has neither token ids nor embeddings, nor an argument such as "
            "pixel_values; give a text, input_ids= or inputs_embeds=, or wrap a model that "
            "takes anything else in NNsight"
        )


def _stacked(sequences: Sequence[Mapping[str, Rows]]) -> dict[str, torch.Tensor]:
    return {
        key: batching.stacked(key, [row for one in sequences for row in one.get(key, ())])
        for key in dict.fromkeys(key for one in sequences for key in one)
    }


# padding


def _merged_prompts(
    model: Architecture,
    parted: _Parted,
    prompts: Sequence[Rows],
    function: str,
    others: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """Pad the prompts to one length, with masks and positions that make each row as alone."""
    if function == "trace":
        _drop_masks_behind_cache(parted, prompts, others)
    sequences, is_padded = parted.sequences, batching.is_padded(prompts)
    if function == "generate" and (is_padded or len(sequences) > 1):
        _infer_masks(model, sequences)
    counting = padding.counting_of(model.inner)
    pad_id, left = counting.padding_id, False
    if is_padded:
        # only now: each attribute of a configuration costs 5 µs, and most runs need none
        left = model.pads_left
        model.check_can_pad(function, left=left)
        pad_id = model.pad_id if pad_id is None else pad_id
    merged = batching.padded(sequences, prompts, pad_id or 0, left=left, first=counting.first)
    mask = merged.get("attention_mask")
    # a model that computes positions from token ids does so in a padded batch, too
    from_ids = counting.padding_id is not None and "input_ids" in merged
    if (
        mask is not None
        and (is_padded or any(one.may_begin_late for one in parted.given))
        and not from_ids
        and not _counts_itself(merged, others)
        and model.takes_positions(function)
        and positions.begins_late(mask)
    ):
        length = max(row.shape[0] for prompt in prompts for row in prompt)
        merged["position_ids"] = positions.counted(mask, length) + counting.first
    return merged


def _counts_itself(merged: Mapping[str, Any], others: Collection[str]) -> bool:
    """Return whether positions are given, or computed by the model from images' tokens."""
    # an image token has a position of several numbers: such a model computes positions itself
    return "position_ids" in merged or any(key.endswith("grid_thw") for key in others)


def _drop_masks_behind_cache(
    parted: _Parted, prompts: Sequence[Rows], arguments: Mapping[str, Any]
) -> None:
    """Drop the tokenizer's masks if a KV cache (`past_key_values`) holds earlier tokens.

    A mask must cover the cached tokens, too, and the tokenizer's does not. Without a mask, the
    model attends to all tokens.

    Raises:
        BatchingError: there is padding, which only a mask could hide.
    """
    if arguments.get("past_key_values") is None:
        return
    is_unclear = batching.is_padded(prompts)
    for one, own in zip(parted.given, parted.sequences, strict=True):
        if "attention_mask" in one.made:
            is_unclear |= not all(bool(row.all()) for row in own["attention_mask"])
            del own["attention_mask"]
    if is_unclear:
        raise BatchingError(
            "prompts of unequal length follow the tokens of past_key_values, and nothing says "
            "which of those are padding; give attention_mask= for the cached and the new "
            "tokens with prompts of one length, or trace them one by one"
        )


def _infer_masks(model: Architecture, sequences: Sequence[dict[str, Rows]]) -> None:
    """Mask padding in ids without a mask, as `generate` does for a single input."""
    config = getattr(model.module, "generation_config", None)
    pad, end = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
    if pad is None or pad == end or (isinstance(end, list) and pad in end):
        return
    for one in sequences:
        rows = one.get("input_ids", ())
        if "attention_mask" not in one and any(bool((row == pad).any()) for row in rows):
            one["attention_mask"] = [row.ne(pad).long() for row in rows]


def _set_padding(model: Architecture, kwargs: dict[str, Any]) -> None:
    """Set the token id that fills finished rows of a generation.

    It is the one that transformers would choose, with a warning.
    """
    config = kwargs.get("generation_config") or getattr(model.module, "generation_config", None)
    if getattr(config, "pad_token_id", None) is not None or "pad_token_id" in kwargs:
        return
    end = kwargs.get("eos_token_id", getattr(config, "eos_token_id", None))
    end = end[0] if isinstance(end, (list, tuple)) and end else end
    kwargs["pad_token_id"] = end if isinstance(end, int) else model.pad_id
