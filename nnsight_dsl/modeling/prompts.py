"""From prompts to arguments of a model: texts and chats are tokenized, other forms passed on.

    all_given([Input(("the cat",)), Input((), {"input_ids": ids})], ...)
    -> [{"input_ids": [[1169, 3797]], "attention_mask": [[1, 1]]}, {"input_ids": ids}]

A chat is a list of messages, `[{"role": "user", "content": "Hello"}]`. The tokenizer's chat
template turns it into text, which ends where the model's answer begins.

Texts of several invokes are tokenized in one call, which takes a third of the time. A tokenizer of
another library may pad such texts or reject a list, so the one call is made only for the classes of
transformers, and its result is used only if it has one row for each text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from nnsight_dsl.modeling.inputs import as_list, blaming, brief, form_of, without_extras
from nnsight_dsl.modeling.options import (
    FOR_PROCESSORS,
    Options,
    chat_keywords,
    refuse_idle,
    text_keywords,
)
from nnsight_dsl.runtime.errors import InputError, TokenizerNotFoundError
from nnsight_dsl.tracing.runnable import Input

_PAIRED = ("text_pair", "text_target", "text_pair_target")
"""Options that are texts themselves, one for each text of the input."""


class Given(dict[str, Any]):
    """The arguments of one input, by name.

    Attributes:
        made: names of those that the tokenizer returned; the user gave all others.
    """

    def __init__(self, arguments: Mapping[str, Any], made: frozenset[str]) -> None:
        super().__init__(arguments)
        self.made = made

    @property
    def may_begin_late(self) -> bool:
        """True if a row may begin with padding. A mask in a tensor is not read: it may have any."""
        mask = self.get("attention_mask")
        if mask is None:
            return False
        if "attention_mask" not in self.made or type(mask) is not list:
            return True
        return any(not (one[0] if isinstance(one, list) else one) for one in mask)


def all_given(
    inputs: Sequence[Input], known: Options, for_texts: Mapping[str, Any], main: str
) -> list[Given]:
    """Return the arguments of each input.

    Args:
        inputs: the inputs, as the user gave them.
        known: the keywords that the run accepts.
        for_texts: options of the tokenizer that were given for all inputs together.
        main: name of the model's main argument.

    Raises:
        InputError: an input has no form of a prompt, or options do not apply to it.
        TokenizerNotFoundError: an input is a text, and there is no tokenizer.
    """
    tokenizer = known.tokenizer
    options: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, one in enumerate(inputs):
        with blaming(number):
            options.append(known.parted(one.kwargs, is_invoke=True) if one.kwargs else ({}, {}))
    texts = [
        number
        for number, one in enumerate(inputs)
        if len(one.args) == 1 and type(one.args[0]) is str and not options[number][0]
    ]
    # a tokenizer of another library may pad texts given together, or take one text at a time
    is_usual = type(tokenizer).__module__.startswith("transformers.")
    rows: dict[int, Mapping[str, Any]] = {}
    if len(texts) > 1 and is_usual and for_texts.keys().isdisjoint(_PAIRED):
        encoding = _encoded_texts(
            tokenizer, [inputs[number].args[0] for number in texts], for_texts
        )
        # with some options (overflowing tokens), a text has several rows, or the result is a tensor
        if all(type(one) is list and len(one) == len(texts) for one in encoding.values()):
            for row, number in enumerate(texts):
                rows[number] = {key: one[row : row + 1] for key, one in encoding.items()}
    given = []
    for number, one in enumerate(inputs):
        with blaming(number):
            own, rest = options[number]
            made = rows.get(number)
            if made is None:
                made, plain = _read(one, known, {**for_texts, **own}, main)
                rest = {**plain, **rest}
            if not made:
                refuse_idle(own)
            else:
                _check_encoding(one.args[0], made)
                made = known.kept_of(made)
            has_ids = "input_ids" in made or "input_ids" in rest
            if has_ids and main != "input_ids" and "input_ids" not in known.forward:
                raise InputError(
                    f"token ids were given, and {type(known.module).__name__} takes {main} in "
                    f"their place; give {main}="
                )
            given.append(Given({**made, **rest}, frozenset(made) - rest.keys()))
    if for_texts and not any(one.made for one in given):
        refuse_idle(for_texts)
    return given


def _read(
    one: Input, known: Options, for_texts: Mapping[str, Any], main: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the tokenizer's result for an input, and the arguments that the user gave directly.

    One of the two is empty.
    """
    if len(one.args) > 1:
        raise InputError(
            f"{len(one.args)} inputs were given at once; give several prompts as a list"
        )
    if not one.args:
        return {}, {}
    value = as_list(one.args[0])
    form = "texts" if for_texts.get("is_split_into_words") else form_of(value)
    if form == "arguments":
        plain = without_extras(value)
        known.check(plain)
        return {}, plain
    if form == "ids":
        is_main = isinstance(value, torch.Tensor) and value.is_floating_point()
        return {}, {main if is_main else "input_ids": value}
    return _encoded(known.tokenizer, value, form, for_texts), {}


def _check_encoding(value: Any, encoding: Mapping[str, Any]) -> None:
    """Refuse a text that the tokenizer turns into no tokens.

    Raises:
        InputError: there is such a text.
    """
    for number, row in enumerate(encoding.get("input_ids", ())):
        if hasattr(row, "__len__") and not len(row):
            texts = [value] if isinstance(value, str) else value
            text = texts[number] if number < len(texts) else value
            raise InputError(
                f"{brief(text)} has no tokens; give a text with at least one, or the ids of a "
                "token to begin with, [[tokenizer.bos_token_id]]"
            )


def _encoded(
    tokenizer: Any, value: Any, form: str, options: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Tokenize one input.

    Args:
        tokenizer: the tokenizer, or None.
        value: a text, a list of texts, a chat or a list of chats.
        form: the form of the value, from `form_of`.
        options: options of the tokenizer.

    Raises:
        TokenizerNotFoundError: there is no tokenizer.
        InputError: the tokenizer has no template for chats, or does not know an option.
    """
    if tokenizer is None:
        raise TokenizerNotFoundError(
            "Tokenizer not found: the model was given as a module, and text needs its "
            "tokenizer; write LanguageModel(module, tokenizer=tokenizer), or give token ids"
        )
    if form in ("chat", "chats"):
        return _encoded_chats(tokenizer, [value] if form == "chat" else list(value), options)
    return _encoded_texts(tokenizer, value, options)


def _encoded_texts(tokenizer: Any, value: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tokenize a text, or several.

    Raises:
        InputError: an option is not one for texts, or a paired text does not fit the input.
    """
    is_one = isinstance(value, str)
    known = text_keywords(tokenizer)
    if "images" in known:
        # the first parameter of a processor is the images
        tokenizer = partial(_processed, tokenizer)
    if not options:
        plain: Mapping[str, Any] = tokenizer([value] if is_one else list(value))
        return plain
    for key in options:
        if key not in known:
            raise InputError(
                f"{key!r} is an option of the template of chats, and the input is "
                f"{brief(value)}; give a chat: [{{'role': 'user', 'content': ...}}]"
            )
    for key in _PAIRED:
        if not is_one and isinstance(options.get(key), str):
            raise InputError(
                f"{key!r} is one text, and the input is a list of {len(value)}; give a list with "
                "one for each"
            )
    given = {
        key: [one] if is_one and key in _PAIRED and isinstance(one, str) else one
        for key, one in options.items()
    }
    found: Mapping[str, Any] = tokenizer([value] if is_one else list(value), **given)
    return found


def _processed(processor: Any, texts: list[str], **options: Any) -> Any:
    """Call a processor with texts, and with the images or the sound among the options."""
    has_more = any(options.get(key) is not None for key in FOR_PROCESSORS)
    if has_more:
        options["return_tensors"] = "pt"
    return processor(text=texts, **options)


def _encoded_chats(
    tokenizer: Any, chats: Sequence[Any], options: Mapping[str, Any]
) -> Mapping[str, Any]:
    name = type(tokenizer).__name__
    if not hasattr(tokenizer, "apply_chat_template"):
        raise InputError(
            f"the input is a chat, and {name} makes no texts of chats; give a text, or a tokenizer "
            "with apply_chat_template"
        )
    if not (getattr(tokenizer, "chat_template", None) or options.get("chat_template")):
        raise InputError(
            f"the input is a chat, and {name} has no chat template, as is usual for base models; "
            "set tokenizer.chat_template, or give a text"
        )
    for chat in chats:
        for number, message in enumerate(chat):
            if not isinstance(message, Mapping) or "role" not in message:
                raise InputError(
                    f"message {number} of the chat is {brief(message)}; a message has the keys "
                    "'role' and 'content'"
                )
    known = chat_keywords(tokenizer)
    for_texts = text_keywords(tokenizer)
    own = {key: one for key, one in options.items() if key in known or key not in for_texts}
    rest = {key: one for key, one in options.items() if key not in own}
    if rest.pop("add_special_tokens", False):
        raise InputError(
            "'add_special_tokens' was given with a chat, and the template of chats writes the "
            "special tokens; leave it out"
        )
    if rest:
        own["tokenizer_kwargs"] = {**own.get("tokenizer_kwargs", {}), **rest}
    if not own.get("continue_final_message"):
        own.setdefault("add_generation_prompt", True)
    found: Mapping[str, Any] = tokenizer.apply_chat_template(
        list(chats), tokenize=True, return_dict=True, **own
    )
    return found
