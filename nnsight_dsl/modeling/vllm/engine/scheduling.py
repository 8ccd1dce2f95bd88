"""Schedulers of vLLM that keep a prompt in one piece where a program needs it so.

vLLM fills each step up to a number of tokens, and cuts the prompt that does not fit (chunked
prefill). A program that changes a value of the whole prompt cannot follow that: what it writes into
layer 3 may depend on what layer 2 gave for the last token, and by then the pieces before have long
passed layer 3. So the request of such a program waits for a step that has room for all of its
prompt. Other requests are cut as ever.

The scheduler asks for each request how many of the tokens it chose are to be computed
(`_reserve_prefill_lookahead`); 0 lets the request wait. One that has waited for a step gets its
room in the next: the running requests share what is left. A prompt that does not fit into any step
is cut as others are, and its program is told at its line.

This module is imported by the engine, by name (`scheduler_cls`), in whichever process that runs.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from nnsight_dsl.modeling.vllm.payload import KEY, WHOLE


class _WholePrompts:
    """What both schedulers do differently from vLLM's own."""

    _waits: tuple[str, int] | None = None
    """The request that found too little room in the last step, and what it needs."""
    _favoured: str | None = None
    """The request for which this step keeps room, since it found too little in the last."""
    _room: int | None = None
    """How many tokens the running requests may still take in such a step."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Choose what the next step computes."""
        this: Any = self
        waits, self._waits, self._room, self._favoured = self._waits, None, None, None
        if waits is not None and this.waiting:
            request_id, needed = waits
            if this.waiting.peek_request().request_id == request_id:
                self._favoured, self._room = request_id, _most_tokens(this) - needed
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def _reserve_prefill_lookahead(self, request: Any, computed: int, chosen: int) -> int:
        chosen = super()._reserve_prefill_lookahead(  # type: ignore[misc]
            request, computed, chosen
        )
        if request.status == RequestStatus.RUNNING:
            if self._room is not None:
                chosen = min(chosen, self._room)
                self._room -= chosen
            return chosen
        this: Any = self
        needed = request.num_tokens - computed
        is_cut = 0 < chosen < needed
        # one that was taken out again after its first token only computes again what it had
        if not is_cut or request.num_output_tokens or not is_whole(request):
            return chosen
        has_all = not this.running or self._favoured == request.request_id
        if needed > _most_tokens(this) or has_all:
            # there is no more room for it, now or later
            return chosen
        self._waits = request.request_id, needed
        return 0


class WholePromptScheduler(_WholePrompts, Scheduler):
    """vLLM's scheduler, with prompts that stay whole."""


class WholePromptAsyncScheduler(_WholePrompts, AsyncScheduler):
    """vLLM's scheduler of steps that overlap, with prompts that stay whole."""


def is_whole(request: Any) -> bool:
    """Tell whether the prompt of a request of vLLM is to be computed in one piece."""
    params = request.sampling_params
    sent = (params.extra_args or {}).get(KEY) if params is not None else None
    return isinstance(sent, dict) and bool(sent.get(WHOLE))


def _most_tokens(scheduler: Any) -> int:
    """Return how many tokens of one request a step computes at most."""
    config = scheduler.scheduler_config
    most = min(scheduler.max_num_scheduled_tokens, config.max_num_batched_tokens)
    threshold = config.long_prefill_token_threshold
    return int(min(most, threshold) if threshold > 0 else most)
