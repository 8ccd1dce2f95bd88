"""A request's parameters, as vLLM takes them, with its programs in them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from itertools import count
from typing import Any

from nnsight_dsl.modeling.vllm.client.effects import NOTHING
from nnsight_dsl.modeling.vllm.client.service import Sent
from nnsight_dsl.modeling.vllm.payload import Part, dump_parts
from nnsight_dsl.modeling.vllm.sent_programs import KEY, SentProgram, sent_in
from nnsight_dsl.runtime.errors import BatchingError, EngineError
from nnsight_dsl.tracing.runnable import Input

_WORDS = {"max_new_tokens": "max_tokens"}
"""Names of sampling parameters in transformers, with those of vLLM."""
_OF_REQUEST = ("lora_request", "priority")
"""Keywords of a trace that are arguments of the request, not sampling parameters."""
_FORMS = frozenset({"prompt", "prompt_token_ids", "prompt_embeds"})
"""Keys of vLLM's own forms of a prompt."""
_keys = count()


@cache
def _client() -> str:
    """Return the beginning of this process's keys: several may be clients of one engine."""
    return f"nnsight_dsl-{secrets.token_hex(8)}-"


os.register_at_fork(after_in_child=_client.cache_clear)


def refusing_others(add_request: Callable[..., Any]) -> Callable[..., Any]:
    """Let an engine's `add_request` refuse programs that no trace of this process has sent.

    Who calls the engine directly may put anything into `extra_args`, and nobody would ask for the
    outcome.
    """

    @wraps(add_request)
    def checked(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        sent = sent_in(getattr(params, "extra_args", None))
        if sent is not None and not sent.key.startswith(_client()):
            raise EngineError(
                f"extra_args[{KEY!r}] of this request has the key {sent.key!r}, which no trace of "
                "this process has made; open a trace on the model, or leave it out"
            )
        return add_request(request_id, prompt, params, *args, **kwargs)

    return checked


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as vLLM takes it.

    Attributes:
        prompt: its prompt, in one of the forms of vLLM's prompts.
        params: its sampling parameters, with its programs.
        options: further arguments of the engine's `add_request` and `generate`.
    """

    prompt: dict[str, Any]
    params: Any
    options: dict[str, Any]


def prepared(
    one: Sent, parts: list[Part], rename: Mapping[str, Any], limit: int | None
) -> Prepared:
    """Give a request its key, and put its programs into its parameters.

    Args:
        one: the request.
        parts: programs to run before its own.
        rename: the model's aliases, which paths in the programs may use.
        limit: default of `max_tokens`; None for vLLM's.
    """
    from vllm import SamplingParams

    own = [*parts, *([one.part] if one.part is not None else [])]
    one.key = f"{_client()}{next(_keys)}"
    options = {_WORDS.get(name, name): value for name, value in one.options.items()}
    if limit is not None:
        options.setdefault("max_tokens", limit)
    others = {name: options.pop(name) for name in _OF_REQUEST if name in options}
    if not own:
        return Prepared(one.prompt, SamplingParams(**options), others)
    if options.get("n", 1) != 1:
        raise EngineError(
            f"n={options['n']} asks for several continuations of a prompt that has a program; "
            "write an invoke for each"
        )
    reach = NOTHING
    for part in own:
        reach |= part.reach
    is_whole = reach.meets_prompt and reach.may_write
    sent = SentProgram(one.key, dump_parts(own, rename), reach, is_whole)
    extra = {**(options.pop("extra_args", None) or {}), KEY: sent.packed()}
    if reach.meets_prompt:
        # a cached token is not computed again, so no module would offer its values
        options["skip_reading_prefix_cache"] = True
    prompt = one.prompt
    if reach.may_write:
        # no other request may read the KV cache that its writes have changed: vLLM finds a cached
        # block by a hash, of which the salt is a part
        prompt = {**prompt, "cache_salt": one.key}
    return Prepared(prompt, SamplingParams(**options, extra_args=extra), others)


def prompt_of(one: Input, tokenizer: Callable[[], Any]) -> dict[str, Any]:
    """Return the prompt of an input, in one of the forms of vLLM's prompts.

    Args:
        one: a text, token ids in a list or a tensor of one row, an encoding of one row, the
            messages of a chat, or one of vLLM's own forms, a dict with `prompt`,
            `prompt_token_ids` or `prompt_embeds`.
        tokenizer: returns the tokenizer, for the messages of a chat.

    Raises:
        BatchingError: the input is several prompts, or something else.
    """
    value: Any = one.args[0] if len(one.args) == 1 else None
    if isinstance(value, Mapping):
        if not _FORMS.isdisjoint(value):
            return {**value}
        value = _unpadded(value)
    value = _listed(value)
    if _is_chat(value):
        ids = tokenizer().apply_chat_template(value, add_generation_prompt=True, return_dict=False)
        return {"prompt_token_ids": list(ids)}
    if isinstance(value, (list, tuple)) and len(value) == 1 and not isinstance(value[0], int):
        value = value[0]
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, int) for item in value):
        return {"prompt_token_ids": list(value)}
    raise BatchingError(
        "a request of an engine has one prompt: a text, a list of token ids, the messages of a "
        f"chat or a prompt of vLLM's own; {one.args!r:.80} was given; write 'with "
        "tracer.invoke(prompt):' for each prompt"
    )


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, Mapping) and "role" in item for item in value)
    )


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _unpadded(encoding: Mapping[str, Any]) -> Any:
    """Return the ids of an encoding of one row that are not padding; None for anything else."""
    ids, mask = (_listed(encoding.get(name)) for name in ("input_ids", "attention_mask"))
    if ids and isinstance(ids[0], (list, tuple)):
        if len(ids) > 1:
            return None
        ids, mask = ids[0], mask[0] if mask is not None else None
    if ids is None or mask is None:
        return ids
    return [token for token, is_kept in zip(ids, mask, strict=True) if is_kept]
