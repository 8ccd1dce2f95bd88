"""Batches: the inputs of several invokes as the arguments of one call.

    with tracer.invoke("the cat"):                                   # 2 tokens
    with tracer.invoke(input_ids=ids, pixel_values=image):           # 7 tokens and an image

becomes one call with `input_ids` of shape [2, 7], an `attention_mask` that says where the first
prompt begins, and `pixel_values` of shape [1, 3, 8, 8]. There are three kinds of arguments:

- *sequences* have one item for each token of the prompt. They are padded on the side that the
  architecture takes its prompts from.
- what an encoder-decoder's *decoder* is given has lengths of its own, and is padded on the right.
- *others*: tensors are joined along their first axis, as images are, which belong to placeholders
  among the tokens in the order in which they come; anything else has to be the same for all.
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
    "position_ids",
    "labels",
)
"""Arguments with one item for each token of the prompt."""

DECODED = ("decoder_input_ids", "decoder_attention_mask", "labels")
"""Arguments with one item for each token that the decoder of an encoder-decoder is given."""

WITHOUT_TOKENS = (
    "input_features",
    "input_values",
    "pixel_values",
    "pixel_values_videos",
    "encoder_outputs",
    "decoder_inputs_embeds",
)
"""Arguments that an input may consist of in place of tokens, as those of sound and images do."""

TOKENS = frozenset(SEQUENCES + DECODED)
INPUTS = TOKENS.union(WITHOUT_TOKENS)

IDS = ("input_ids", "decoder_input_ids")


def rows_of(key: str, value: Any) -> Rows:
    """Split a sequence into rows: a tensor, a list of numbers or a list of lists.

    Raises:
        InputError: it is none of these.
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
    """Return the rows of an input's prompt, as token ids or embeddings."""
    for key in ("input_ids", "inputs_embeds"):
        if key in sequences:
            return sequences[key]
    return None


def find_count(given: Mapping[str, Any], main: str) -> int | None:
    """Return how many rows an input without tokens has.

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
    """Tell whether prompts differ in length, so that one batch of them needs padding."""
    # by shape: `len` of a tensor is a function of torch's in Python
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

    Arguments that no input has are not made up, but for the mask where something is padded.

    Args:
        inputs: for each input, its arguments with one item for each token.
        prompts: for each input, the rows of its prompt.
        pad_id: what token ids are padded with.
        left: whether the padding comes before the prompts.
        first: the position of a prompt's first token.

    Raises:
        BatchingError: an argument has not one item for each token, or is of another kind for
            another input.
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
    """Make one tensor of rows.

    Raises:
        BatchingError: they differ in shape.
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
    """Make one batch of what the decoder is given, padded on the right, where it never looks.

    Args:
        inputs: for each input, its arguments for the decoder.
        pad_id: what token ids are padded with.
        is_continued: whether the decoder goes on writing where these end.
        refusal: why this model cannot have inputs of unequal length for its decoder.

    Raises:
        BatchingError: only some have an argument, or they are of unequal length and continued, or
            padding is refused.
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


def make_labels_of_rows(inputs: Sequence[dict[str, Any]]) -> None:
    """Make a tensor of the labels of each input, with one item for each row.

    Raises:
        BatchingError: only some inputs have labels.
        InputError: no tensor can be made of them.
    """
    for number, one in enumerate(inputs):
        value = one.get("labels")
        if value is None:
            raise BatchingError(
                "labels is given to some invokes and not to others, and a loss is one of all rows; "
                "give it to each invoke, or trace them one by one"
            )
        with blaming(number):
            try:
                tensor = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"labels is {brief(value)}, of which no tensor can be made ({error}); give a "
                    "tensor, or a list with one item for each row"
                ) from error
        one["labels"] = tensor if tensor.ndim else tensor[None]


def joined(
    inputs: Sequence[Mapping[str, Any]], counts: Sequence[int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Make one argument each of those that are no sequences.

    Args:
        inputs: for each input, its arguments that are no sequences.
        counts: rows of each input.
        options: arguments that were given for all inputs together.

    Raises:
        BatchingError: they cannot be joined, or have as many items as there are rows, of other
            inputs.
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
    """Return what a sequence is for an input that was given without it."""
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
    fill = pad_id if key in IDS else -100 if key == "labels" else 0
    if key == "labels" and left:
        # alone, the first token is not predicted; here, it would be from the padding
        missing, row = missing + 1, row[1:]
    padding = row.new_full((missing, *row.shape[1:]), fill)
    return torch.cat([padding, row] if left else [row, padding])


def _tensor_of(value: Any) -> Any:
    is_array = hasattr(value, "__array__") and not isinstance(value, torch.Tensor)
    return torch.as_tensor(value) if is_array else value


def _are_rows(values: Iterable[Any]) -> bool:
    """Tell whether these are tensors that can stand one below the other."""
    shapes = {
        value.shape[1:] if isinstance(value, torch.Tensor) and value.ndim else None
        for value in values
    }
    return len(shapes) == 1 and None not in shapes


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    try:
        return bool(one is other or one == other)
    except (RuntimeError, ValueError):
        # of tensors or arrays, which have no one answer
        return False


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        # an output of transformers is one, whose repr has its tensors
        return f"of type {type(value).__qualname__}"
    return repr(value)
