"""Prompts as token ids: what a tokenizer makes of texts and of chats.

A chat is a list of messages, `[{"role": "user", "content": "Hello"}]`. The tokenizer's template
makes a text of it, which ends where the model's answer begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnsight_dsl.modeling.inputs import brief
from nnsight_dsl.modeling.options import chat_keywords, text_keywords
from nnsight_dsl.runtime.errors import InputError, TokenizerNotFoundError

PAIRED = ("text_pair", "text_target", "text_pair_target")
"""Options that are texts themselves, one for each text."""


def encoded(tokenizer: Any, value: Any, form: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a tokenizer makes of one input.

    Args:
        tokenizer: the tokenizer, or None.
        value: a text, a list of texts, a chat or a list of chats.
        form: which of them it is.
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
    return encoded_texts(tokenizer, value, options)


def encoded_texts(tokenizer: Any, value: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a tokenizer makes of a text, or of several."""
    is_one = isinstance(value, str)
    if not options:
        plain: Mapping[str, Any] = tokenizer([value] if is_one else list(value))
        return plain
    known = text_keywords(tokenizer)
    for key in options:
        if key not in known:
            raise InputError(
                f"{key!r} is an option of the template of chats, and the input is "
                f"{brief(value)}; give a chat: [{{'role': 'user', 'content': ...}}]"
            )
    given = {
        key: [one] if is_one and key in PAIRED and isinstance(one, str) else one
        for key, one in options.items()
    }
    found: Mapping[str, Any] = tokenizer([value] if is_one else list(value), **given)
    return found


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
            f"the input is a chat, and {name} has no chat template, as one of a base model has "
            "none; set tokenizer.chat_template, or give a text"
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
    if rest:
        own["tokenizer_kwargs"] = {**own.get("tokenizer_kwargs", {}), **rest}
    if not own.get("continue_final_message"):
        own.setdefault("add_generation_prompt", True)
    found: Mapping[str, Any] = tokenizer.apply_chat_template(
        list(chats), tokenize=True, return_dict=True, **own
    )
    return found
