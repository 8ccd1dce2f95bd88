"""A request's parameters, as vLLM takes them, with its programs in them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
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


def prepared(
    one: Sent, parts: list[Part], rename: Mapping[str, Any], limit: int | None
) -> tuple[Any, Any]:
    """Give a request its key; return its sampling parameters and its prompt, as vLLM takes them.

    Args:
        one: the request.
        parts: programs to run before its own.
        rename: the model's aliases, which paths in the programs may use.
        limit: default of `max_tokens`; None for vLLM's.
    """
    own = [*parts, *([one.part] if one.part is not None else [])]
    one.key = f"{_client()}{next(_keys)}"
    return _params_of(one, own, rename, limit)


def _params_of(
    one: Sent, parts: list[Part], rename: Mapping[str, Any], limit: int | None
) -> tuple[Any, Any]:
    """Return a request's sampling parameters, with its programs in them, and its prompt."""
    from vllm import SamplingParams

    options = {_WORDS.get(name, name): value for name, value in one.options.items()}
    if limit is not None:
        options.setdefault("max_tokens", limit)
    prompt = (
        {"prompt": one.prompt} if isinstance(one.prompt, str) else {"prompt_token_ids": one.prompt}
    )
    if not parts:
        return SamplingParams(**options), prompt
    if options.get("n", 1) != 1:
        raise EngineError(
            f"n={options['n']} asks for several continuations of a prompt that has a program; "
            "write an invoke for each"
        )
    reach = NOTHING
    for part in parts:
        reach |= part.reach
    is_whole = reach.meets_prompt and reach.may_write
    sent = SentProgram(one.key, dump_parts(parts, rename), reach, is_whole)
    extra = {**(options.pop("extra_args", None) or {}), KEY: sent.packed()}
    if reach.meets_prompt:
        # a cached token is not computed again, so no module would offer its values
        options["skip_reading_prefix_cache"] = True
    if reach.may_write:
        # no other request may read the KV cache that its writes have changed: vLLM finds a cached
        # block by a hash, of which the salt is a part
        prompt = {**prompt, "cache_salt": one.key}
    return SamplingParams(**options, extra_args=extra), prompt


def prompt_of(one: Input) -> Any:
    """Return the prompt of an input: a text, or a list of token ids.

    Raises:
        BatchingError: the input is several prompts, or something else.
    """
    value: Any = one.args[0] if one.args else None
    if len(one.args) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and len(value) == 1 and not isinstance(value[0], int):
        value = value[0]
    is_ids = isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value)
    if len(one.args) == 1 and (isinstance(value, str) or (is_ids and value)):
        return value if isinstance(value, str) else list(value)
    raise BatchingError(
        "a request of an engine has one prompt, a text or a list of token ids, and "
        f"{one.args!r:.80} was given; write 'with tracer.invoke(prompt):' for each prompt"
    )
