"""Schedulers of vLLM that keep a prompt in one piece if its program needs that.

With chunked prefill, vLLM fills each step up to a budget of tokens, and splits a prompt that does
not fit. A program that writes into its prompt cannot be run on pieces: its write to layer 3 may
depend on layer 2 at the last token, and by then the earlier pieces have passed layer 3. So the
request of such a program waits for a step with room for its whole prompt:

    budget 8, running requests take 3, a prompt of 7 tokens
    step 1:   the prompt waits; the running requests take what they need
    step 2:   the running requests share 1 token; the prompt is computed whole

`_reserve_prefill_lookahead` is a hook of vLLM's schedulers: it gets the number of tokens chosen for
a request, and returns how many to compute; 0 lets the request wait. After one step of waiting, the
room is kept in the next step, so no request waits longer, unless the KV cache is full. All other
requests are split as in vLLM. So is a prompt that fits into no step; its program gets an error at
the line that asks a module for the prompt.

vLLM imports this module by name (`scheduler_cls`), in the process of the engine's core.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from nnsight_dsl.modeling.vllm.sent_programs import sent_in
from nnsight_dsl.runtime.errors import EngineError


class _WholePrompts:
    """Mixin with the difference of both schedulers from vLLM's.

    Each step sets all three attributes anew.
    """

    _waits: tuple[str, int] | None = None
    """Id of a request that waits since it found too little room in this step, and its tokens."""
    _favoured: str | None = None
    """Id of the request for which this step keeps room: the one that waited in the last step."""
    _room: int | None = None
    """Tokens left for the running requests in a step that keeps room; None in any other."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Choose the tokens of the next step."""
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
        # a request with output tokens is recomputed after preemption: its program has seen the
        # prompt, and its edits are repeated piece by piece
        if not is_cut or request.num_output_tokens or not is_whole(request):
            return chosen
        has_all = not this.running or self._favoured == request.request_id
        if needed > _most_tokens(this) or has_all:
            # waiting would not give it more room
            return chosen
        self._waits = request.request_id, needed
        return 0


class WholePromptScheduler(_WholePrompts, Scheduler):
    """vLLM's scheduler, with prompts kept whole where a program needs that."""


class WholePromptAsyncScheduler(_WholePrompts, AsyncScheduler):
    """vLLM's scheduler of overlapping steps, with prompts kept whole where a program needs that."""


def is_whole(request: Any) -> bool:
    """Return whether the prompt of a vLLM request must be computed in one piece."""
    params = request.sampling_params
    try:
        sent = sent_in(params.extra_args) if params is not None else None
    except EngineError:
        return False
    return sent is not None and sent.is_whole


def _most_tokens(scheduler: Any) -> int:
    """Return the largest number of tokens of one request that a step can compute."""
    config = scheduler.scheduler_config
    most = min(scheduler.max_num_scheduled_tokens, config.max_num_batched_tokens)
    threshold = config.long_prefill_token_threshold
    return int(min(most, threshold) if threshold > 0 else most)
