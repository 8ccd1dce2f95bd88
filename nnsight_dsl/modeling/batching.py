"""Batches: joining the inputs of several invokes into the arguments of one call.

    with tracer.invoke("the cat"):                                   # 2 tokens
    with tracer.invoke(input_ids=ids, pixel_values=image):           # 7 tokens and an image

becomes one call with `input_ids` of shape [2, 7], an `attention_mask` that hides the padding before
the first prompt, and `pixel_values` of shape [1, 3, 8, 8]. There are three kinds of arguments:

- *Sequences* have one item for each token of the prompt. They are padded on the side that the
  architecture expects: on the left for a model that generates.
- The inputs of an encoder-decoder's *decoder* have other lengths, and are padded on the right.
- All *others*: tensors are concatenated along the first axis. Images belong to placeholders among
  the tokens in order, so their order is kept. Any other value has to be equal for all inputs.

Padding must not change the result of a row (see `padding.py`). Anything ambiguous is a
`BatchingError`, such as embeddings for one invoke and token ids for another, or a tensor with one
item for each row of the batch, of which one invoke has more items than rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from nnsight_dsl.modeling.inputs import Rows, blaming, brief, id_rows
from nnsight_dsl.modeling.positions import counted
from nnsight_dsl.runtime.errors import BatchingError, InputError

SEQUENCES = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "special_tokens_mask",
    "position_ids",
    "labels",
)
"""Arguments with one item for each token of the prompt."""

OF_ROWS = ("labels", "next_sentence_label", "start_positions", "end_positions")
"""Labels with one item for each row; `labels` only for models that classify rows."""

DECODED = ("decoder_input_ids", "decoder_attention_mask", "labels")
"""Arguments with one item for each token of an encoder-decoder's decoder."""

WITHOUT_TOKENS = (
    "input_features",
    "input_values",
    "pixel_values",
    "pixel_values_videos",
    "encoder_outputs",
    "decoder_inputs_embeds",
)
"""Arguments that can replace the tokens of an input, such as images and sound."""

TOKENS = frozenset(SEQUENCES + DECODED)
INPUTS = TOKENS.union(WITHOUT_TOKENS)

IDS = ("input_ids", "decoder_input_ids")

_PADDING = {"labels": -100, "special_tokens_mask": 1}
"""What padding has in a sequence, where it is not 0."""


def rows_of(key: str, value: Any) -> Rows:
    """Split a sequence into rows.

    Args:
        key: name of the argument.
        value: a tensor [items] or [rows, items, ...], a list of numbers, or a list of lists.

    Raises:
        InputError: no tensor can be made of it, or it has no rows.
    """
    if key in IDS:
        return id_rows(key, value)
    try:
        if isinstance(value, (list, tuple)):
            is_row = bool(value) and isinstance(value[0], (int, float))
            rows = [torch.as_tensor(row) for row in ([value] if is_row else value)]
        else:
            tensor = torch.as_tensor(value)
            rows = list(tensor if tensor.ndim > 1 else tensor[None])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{key} is {brief(value)}, of which no tensor can be made ({error}); give a tensor, or "
            "a list of numbers for each row"
        ) from error
    if not rows:
        raise InputError(f"{key} has no rows; give one for each prompt, or leave it out")
    return rows


def find_prompt(sequences: Mapping[str, Rows]) -> Rows | None:
    """Return the rows of an input's token ids or embeddings; None without either."""
    for key in ("input_ids", "inputs_embeds"):
        if key in sequences:
            return sequences[key]
    return None


def find_count(given: Mapping[str, Any], main: str) -> int | None:
    """Return the number of rows of an input without tokens; None if no argument shows it.

    Args:
        given: its arguments.
        main: name of the model's main argument.
    """
    for key in (main, *WITHOUT_TOKENS):
        value = given.get(key)
        if key == "encoder_outputs" and value is not None and not hasattr(value, "shape"):
            value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
        shape = getattr(value, "shape", None)
        if shape:
            return int(shape[0])
    return None


def is_padded(prompts: Sequence[Rows]) -> bool:
    """Return whether prompts differ in length, so that one batch of them needs padding."""
    # `shape[0]`, since `len(tensor)` runs a Python function of torch
    return len({row.shape[0] for prompt in prompts for row in prompt}) > 1


def padded(
    inputs: Sequence[Mapping[str, Rows]],
    prompts: Sequence[Rows],
    pad_id: int,
    *,
    left: bool,
    first: int = 0,
) -> dict[str, torch.Tensor]:
    """Make one batch of the sequences of several inputs.

    An argument that only some inputs have gets its default for the others. The attention mask is
    added if there is padding.

    Args:
        inputs: for each input, its arguments with one item for each token.
        prompts: for each input, the rows of its prompt.
        pad_id: the token id for padding.
        left: True for padding on the left.
        first: the position of a prompt's first token.

    Returns:
        The arguments, each [rows, longest prompt, ...].

    Raises:
        BatchingError: an argument does not have one item for each token, or one input gives token
            ids and another embeddings.
    """
    lengths = [[row.shape[0] for row in prompt] for prompt in prompts]
    longest = max(map(max, lengths))
    pads = is_padded(prompts)
    if pads and any(row.ndim > 1 for one in inputs for row in one.get("input_ids", ())):
        raise BatchingError(
            "input_ids has a different number of choices for another row, and one batch has the "
            "same number for all; trace them one by one"
        )
    keys = set().union(*inputs)
    if pads:
        keys.add("attention_mask")
    merged: dict[str, torch.Tensor] = {}
    for key in sorted(keys, key=SEQUENCES.index):
        rows: Rows = []
        for one, prompt, expected in zip(inputs, prompts, lengths, strict=True):
            own = one[key] if key in one else _unsaid(key, one, prompt, first)
            fits = [row.shape[0] for row in own] == expected if pads else len(own) == len(prompt)
            if not fits and (pads or len(inputs) > 1):
                raise BatchingError(
                    f"{key} has not one item for each token of its prompt, so nothing says how to "
                    "pad it; trace the prompts one by one"
                )
            rows.extend(own)
        if pads:
            rows = [_pad(key, row, longest, pad_id, left=left) for row in rows]
        merged[key] = stacked(key, rows)
    return merged


def stacked(key: str, rows: Rows) -> torch.Tensor:
    """Stack rows into one tensor.

    Args:
        key: name of the argument, for the message.
        rows: the rows.

    Raises:
        BatchingError: the rows differ in shape.
    """
    shapes = {row.shape for row in rows}
    if len(shapes) > 1:
        first, *_, last = sorted(tuple(shape) for shape in shapes)
        raise BatchingError(
            f"{key} has a row of shape {first} and one of shape {last}, and one batch has rows of "
            "one shape; trace the prompts one by one"
        )
    return torch.stack(rows)


def padded_for_decoder(
    inputs: Sequence[Mapping[str, Rows]],
    pad_id: int,
    *,
    is_continued: bool,
    refusal: str | None = None,
) -> dict[str, torch.Tensor]:
    """Make one batch of the inputs of a decoder, padded on the right.

    A causal decoder attends to earlier tokens only, so padding on the right needs no mask.

    Args:
        inputs: for each input, its arguments for the decoder.
        pad_id: the token id for padding.
        is_continued: True if the decoder generates from the end of these.
        refusal: the reason why this model's decoder cannot be padded, as the end of a sentence;
            None if it can.

    Raises:
        BatchingError: only some inputs have an argument; or the lengths differ, and the decoder
            continues them or cannot be padded.
    """
    merged: dict[str, torch.Tensor] = {}
    for key in sorted(set().union(*inputs), key=DECODED.index):
        if any(key not in one for one in inputs):
            raise BatchingError(
                f"{key} is given to some invokes and not to others, and one batch has it for all "
                "rows or for none; give it to each invoke, or trace them one by one"
            )
        rows = [row for one in inputs for row in one[key]]
        longest = max(row.shape[0] for row in rows)
        pads = min(row.shape[0] for row in rows) < longest
        if pads and refusal is not None:
            raise BatchingError(
                f"{key} is of unequal length, and this model {refusal}; give the same number of "
                "tokens to each invoke, or trace them one by one"
            )
        if is_continued and pads:
            raise BatchingError(
                f"{key} of unequal length would be continued after its padding; give the same "
                "number of tokens to each invoke, or generate one by one"
            )
        merged[key] = stacked(key, [_pad(key, row, longest, pad_id, left=False) for row in rows])
    return merged


def make_labels_of_rows(inputs: Sequence[dict[str, Any]], key: str = "labels") -> None:
    """Replace the labels of each input by a tensor with one item for each row, in place.

    Args:
        inputs: the arguments of each input.
        key: name of the argument.

    Raises:
        BatchingError: only some inputs have labels.
        InputError: no tensor can be made of the labels of an input.
    """
    for number, one in enumerate(inputs):
        value = one.get(key)
        if value is None:
            raise BatchingError(
                f"{key} is given to some invokes and not to others, and a loss is one of all rows; "
                "give it to each invoke, or trace them one by one"
            )
        with blaming(number):
            try:
                tensor = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"{key} is {brief(value)}, of which no tensor can be made ({error}); give a "
                    "tensor, or a list with one item for each row"
                ) from error
        one[key] = tensor if tensor.ndim else tensor[None]


def joined(
    inputs: Sequence[Mapping[str, Any]], counts: Sequence[int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Join the arguments that are not sequences: tensors by `cat`, others if they are equal.

    Args:
        inputs: for each input, its arguments that are not sequences.
        counts: the number of rows of each input.
        options: arguments that were given for all inputs together.

    Raises:
        BatchingError: values differ and cannot be concatenated; or a tensor has one item for each
            row of the batch, but another number for an input than that input has rows.
    """
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in inputs for key in one):
        values = [_tensor_of(one[key]) if key in one else None for one in inputs]
        given = [value for value in values if value is not None]
        if not given:
            merged[key] = None
            continue
        if key in options:
            given.insert(0, options[key])
        if len(given) == 1:
            merged[key] = given[0]
        elif key not in options and _are_rows(given):
            merged[key] = torch.cat(given)
        elif all(_is_same(value, given[0]) for value in given):
            merged[key] = given[0]
        else:
            raise BatchingError(
                f"{key} is {_brief(given[0])} for one invoke and {_brief(given[-1])} for another, "
                "and one batch has one; "
                + ("" if key in INPUTS else "give it to the trace, or ")
                + "trace them one by one"
            )
        lengths = [len(v) if v is not None and _are_rows([v]) else 0 for v in values]
        if sum(lengths) == sum(counts) and lengths != list(counts) and len(inputs) > 1:
            raise BatchingError(
                f"{key} has as many items as the batch has rows, {sum(counts)}, but not one for "
                "each row, so nothing would say whose they are; trace the prompts one by one"
            )
    return merged


def _unsaid(key: str, one: Mapping[str, Rows], prompt: Rows, first: int) -> Rows:
    """Return the default of a sequence, for an input without it beside one that has it.

    Args:
        key: name of the sequence.
        one: the sequences that the input has.
        prompt: the rows of its prompt.
        first: the position of a prompt's first token.

    Raises:
        BatchingError: the sequence is the prompt itself, as token ids or as embeddings.
    """
    if key in ("input_ids", "inputs_embeds"):
        raise BatchingError(
            "one invoke gives token ids and another one embeddings, and one batch has either; "
            "give embeddings to all of them, or trace them one by one"
        )
    if key == "position_ids":
        masks = one.get("attention_mask") or [row.new_ones(len(row)) for row in prompt]
        return [counted(mask, len(row)) + first for mask, row in zip(masks, prompt, strict=True)]
    fill = {"labels": -100, "attention_mask": 1}.get(key, 0)
    return [torch.full((len(row),), fill, device=row.device) for row in prompt]


def _pad(key: str, row: torch.Tensor, length: int, pad_id: int, *, left: bool) -> torch.Tensor:
    missing = length - row.shape[0]
    if not missing:
        return row
    fill = pad_id if key in IDS else _PADDING.get(key, 0)
    if key == "labels" and left:
        # Labels are shifted by one: alone, the first token is never predicted. Behind padding, it
        # would be predicted from a padding token, so its label is masked.
        missing, row = missing + 1, row[1:]
    padding = row.new_full((missing, *row.shape[1:]), fill)
    return torch.cat([padding, row] if left else [row, padding])


def _tensor_of(value: Any) -> Any:
    is_array = hasattr(value, "__array__") and not isinstance(value, torch.Tensor)
    return torch.as_tensor(value) if is_array else value


def _are_rows(values: Iterable[Any]) -> bool:
    """Return whether these are tensors that can be concatenated along the first axis."""
    shapes = {
        value.shape[1:] if isinstance(value, torch.Tensor) and value.ndim else None
        for value in values
    }
    return len(shapes) == 1 and None not in shapes


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        # by identity: a comparison of values would read them from the device
        return one is other
    try:
        return bool(one is other or one == other)
    except (RuntimeError, ValueError):
        # a container of tensors or arrays, whose `==` has no single truth value
        return False


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        # such as a ModelOutput, whose repr would print its tensors
        return f"of type {type(value).__qualname__}"
    return repr(value)
