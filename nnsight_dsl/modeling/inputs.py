"""The forms of a prompt: recognised before anything is tokenized.

    "the cat"                                       text
    ["the cat", "the dog"]                          texts
    [{"role": "user", "content": "Hello"}]          chat; a list of chats: chats
    [464, 3797], [[1, 2], [3]], a tensor, an array  ids
    {"input_ids": ids, "pixel_values": image}       arguments

Anything else is an `InputError` that describes the value and how to write it: bytes, a set, a list
with mixed forms, floats as token ids. Without this, such values would reach the tokenizer or the
model, with errors from deep inside, or with none.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch

from nnsight_dsl.runtime.errors import InputError

Rows = list[torch.Tensor]
"""One sequence of an input as a list of rows, which may differ in length."""

_INTEGERS = frozenset(
    {
        torch.uint8, torch.uint16, torch.uint32, torch.uint64,
        torch.int8, torch.int16, torch.int32, torch.int64,
    }
)  # fmt: skip
_INDICES = (torch.int32, torch.int64)
"""Integer types that an embedding accepts."""

_FORMS = "give a text, a list of texts, token ids as a list or a tensor of integers, or a chat"

_BESIDE_TOKENS = frozenset(
    "assistant_masks length num_truncated_tokens offset_mapping overflow_to_sample_mapping "
    "overflowing_tokens special_tokens_mask".split()
)
"""Results of a tokenizer that are information for its caller, not arguments of a model."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 40


@contextmanager
def blaming(number: int) -> Iterator[None]:
    """Note in an `InputError` the number of the input that it is about, in the order of invokes."""
    try:
        yield
    except InputError as error:
        error.number = number
        raise


def form_of(value: Any) -> str:
    """Return the form of a positional input.

    Returns:
        `"text"`, `"texts"`, `"chat"`, `"chats"`, `"ids"`, or `"arguments"` for a mapping.

    Raises:
        InputError: the value has none of these forms.
    """
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        if "role" in value and "content" in value:
            raise InputError("a single message was given; a chat is a list: write [message]")
        return "arguments"
    if isinstance(value, torch.Tensor):
        return "ids"
    if isinstance(value, (list, tuple)):
        return _form_of_items(value)
    if hasattr(value, "__array__"):
        return "ids"
    raise InputError(f"the input is {brief(value)}; {_remedy(value)}")


def as_list(value: Any) -> Any:
    """Return an array of texts or objects as a list, and any other value unchanged."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("U", "S", "O", "T") and hasattr(value, "tolist"):
        return value.tolist()
    return value


def _form_of_items(items: Sequence[Any]) -> str:
    if not items:
        raise InputError(f"the input is an empty {type(items).__name__}; give at least one prompt")
    types = set(map(type, items))
    if types == {int} or types == {str}:
        return "ids" if types == {int} else "texts"
    kinds = [_kind_of(one) for one in items]
    first = kinds[0]
    for number, kind in enumerate(kinds):
        if kind != first and {kind, first} != {"number", "rows"}:
            raise InputError(
                f"item 0 of the input is {brief(items[0])}, and item {number} is "
                f"{brief(items[number])}; give prompts of one form in a list, and those of another "
                "form to an invoke of their own"
            )
        if kind == "other":
            raise InputError(
                f"item {number} of the input is {brief(items[number])}; {_remedy(items[number])}"
            )
    if first == "text":
        return "texts"
    if first == "message":
        return "chat"
    return "chats" if first == "chat" else "ids"


def _kind_of(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    if isinstance(item, Mapping):
        if "role" not in item:
            raise InputError(
                f"a list of mappings was given, of which one has the keys {sorted(map(str, item))};"
                " a chat is a list of messages with 'role' and 'content', and the arguments of the "
                "model are given to one invoke each"
            )
        return "message"
    if isinstance(item, (list, tuple)):
        if not item:
            raise InputError("a row of the input is empty; give at least one token")
        if isinstance(item[0], Mapping):
            return "chat"
        if str in set(map(type, item)):
            raise InputError(
                f"the input has a list of texts in a list, {brief(item)}; write the texts in one "
                "list, or text_pair= for the second of a pair"
            )
        return "rows"
    if isinstance(item, torch.Tensor) or hasattr(item, "__array__"):
        return "number" if getattr(item, "ndim", 1) == 0 else "rows"
    return "number" if isinstance(item, (int, float)) else "other"


def id_rows(key: str, value: Any) -> Rows:
    """Split token ids into rows.

    Args:
        key: name of the argument, as `"input_ids"`.
        value: a tensor or an array of one or two axes, or of three for a model of choices, a list
            of ints, or a list of rows.

    Returns:
        The rows, as integer tensors that an embedding accepts.

    Raises:
        InputError: the value is not token ids, or has an empty row.
    """
    value = as_list(value)
    if not isinstance(value, (list, tuple)):
        tensor = _tensor_of(key, value)
        if tensor.ndim not in (1, 2, 3):
            raise wrong_axes(key, tensor.shape)
        tensor = _as_indices(key, tensor)
        rows = list(tensor) if tensor.ndim > 1 else [tensor]
    elif not value:
        raise InputError(f"{key} is an empty list; give at least one token")
    elif _are_numbers(value):
        rows = [_row_of(key, value)]
    else:
        rows = []
        for number, one in enumerate(value):
            row = as_list(one)
            if isinstance(row, (list, tuple)):
                rows.append(_row_of(key, row))
                continue
            if not hasattr(row, "__array__"):
                raise InputError(f"item {number} of {key} is {brief(row)}; {_remedy(row)}")
            tensor = _as_indices(key, _tensor_of(key, row))
            if tensor.ndim != 1:
                raise InputError(
                    f"row {number} of {key} is a tensor of shape {tuple(tensor.shape)}; a row has "
                    "one axis: write torch.cat(rows) for rows of equal length, or row[0]"
                )
            rows.append(tensor)
    if not rows:
        raise InputError(f"{key} has no rows; give at least one")
    for number, row in enumerate(rows):
        if not row.shape[0]:
            raise InputError(f"row {number} of {key} has no tokens; give at least one")
    return rows


def wrong_axes(key: str, shape: Sequence[int]) -> InputError:
    """Return the error for ids with a number of axes that the model does not take."""
    return InputError(
        f"{key} is a tensor of shape {tuple(shape)}; token ids are [tokens] or [rows, tokens], and "
        "embeddings are given as inputs_embeds="
    )


def without_extras(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's results without those that are not arguments of a model."""
    return {key: value for key, value in given.items() if key not in _BESIDE_TOKENS}


def brief(value: Any) -> str:
    """Return a short description of a value, for an error message."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return f"the text {_repr.repr(value)}"
    if isinstance(value, torch.Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, (int, float, bytes)):
        return f"the {type(value).__name__} {_repr.repr(value)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {_repr.repr(list(value))}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"the {type(value).__name__} {_repr.repr(value)}"
    return f"an object of type {type(value).__qualname__}"


def _remedy(value: Any) -> str:
    """Return the second half of a message: how to write the input that was probably meant."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "a prompt is a text: decode it, as in value.decode()"
    if isinstance(value, bool) or value is None:
        return _FORMS
    if isinstance(value, (int, Integral)):
        return f"token ids are a list, [{value}], and a text is in quotes, '{value}'"
    if isinstance(value, (set, frozenset)):
        return "a set has no order: give a list"
    if hasattr(value, "__iter__"):
        return "give a list: list(value)"
    return _FORMS


def _are_numbers(items: Sequence[Any]) -> bool:
    first = items[0]
    if isinstance(first, (list, tuple)):
        return False
    return not hasattr(first, "__array__") or getattr(first, "ndim", 1) == 0


def _row_of(key: str, items: Sequence[Any]) -> torch.Tensor:
    """Return a list of token ids as a tensor."""
    if set(map(type, items)) != {int}:
        items = [_id_of(key, number, one) for number, one in enumerate(items)]
    try:
        return torch.tensor(items, dtype=torch.int64)
    except (OverflowError, RuntimeError, ValueError):
        raise InputError(
            f"{key} has the id {max(items, key=abs)}; give ids of this model's tokenizer"
        ) from None


def _id_of(key: str, number: int, one: Any) -> int:
    is_scalar = hasattr(one, "__array__") and getattr(one, "ndim", 1) == 0
    found = one.item() if is_scalar and hasattr(one, "item") else one
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise InputError(f"item {number} of {key} is {brief(found)}; token ids are integers")
    return int(found)


def _tensor_of(key: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{key} is {brief(value)}; {_remedy(value)}") from error


def _as_indices(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in _INDICES:
        return tensor
    if tensor.dtype in _INTEGERS:
        return tensor.to(torch.int64)
    raise InputError(
        f"{key} is a tensor of shape {tuple(tensor.shape)} and type {tensor.dtype}; token ids are "
        "integers: write ids.long() if these are, inputs_embeds= for embeddings, and the name of "
        "the argument for anything else"
    )
