"""The engine's side: what stands in a worker of vLLM, between its model runner and the requests.

A model runner takes all requests of a step as one flat batch of tokens, runs the model once, picks
each request's last position, computes logits and samples. Four of its methods are wrapped, on that
one runner:

| method           | what happens there                                                   |
|------------------|----------------------------------------------------------------------|
| `execute_model`  | programs of new requests start                                       |
| `_model_forward` | each request learns its span of the flat batch; modules offer values |
| `_sample`        | logits before, sampled tokens after                                  |

A module carries a tap only while a request in the engine addresses it, and without programs each
wrapper costs one look at an empty dict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling.vllm.forms import Span
from nnsight_dsl.modeling.vllm.limits import Limit
from nnsight_dsl.modeling.vllm.payload import KEY, opened, rename_in
from nnsight_dsl.modeling.vllm.places import EngineRoot
from nnsight_dsl.modeling.vllm.reach import Reach
from nnsight_dsl.modeling.vllm.run import RequestTap, Run
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.replays import INPUTS, OUTPUT
from nnsight_dsl.runtime.taps import install_tap, remove_tap

_SPLIT = (
    "this prompt was computed in pieces, and a block that can change what modules give needs it as "
    "a whole; make the engine with max_num_batched_tokens for the longest prompt, or only read, by "
    "accesses in the block itself"
)


@dataclass(slots=True)
class Slot:
    """One request in the forward that runs.

    Attributes:
        run: its programs.
        first: the position of its first token in this forward.
        again: those of its tokens that were offered before, and are computed again.
        span: those that are new.
        is_piece: whether the prompt goes on in a later forward.
    """

    run: Run
    first: int
    again: Span
    span: Span
    is_piece: bool

    @property
    def first_new(self) -> int:
        """The position of the first token that is new."""
        return self.first + self.again.count

    @property
    def is_offered(self) -> bool:
        """Whether programs are offered something of it."""
        return self.span.count > 0 and not self.is_piece


class Engine:
    """What a worker keeps of its requests' programs.

    Attributes:
        thread: where the model runs.
        is_compiled: whether the model's modules are not called one by one.
        slots: the requests whose values the forward that runs is to offer.
        limit: how long a program may go on without asking for a value.
    """

    is_in_backward = False

    def __init__(self, runner: Any, seconds: float) -> None:
        self.runner = runner
        self.thread = get_ident()
        self.slots: list[Slot] = []
        self.limit = Limit(seconds)
        self.is_compiled = bool(runner.compilation_config.mode)
        self._runs: dict[str, Run] = {}
        self._by_key: dict[str, Run] = {}
        self._ids: dict[str, str] = {}
        self._roots: dict[str, EngineRoot] = {}
        self._taps: dict[int, EngineTap] = {}
        self._scheduled: Any = None
        self._sampling: list[tuple[int, Slot]] = []
        self.install()

    def install(self) -> None:
        """Wrap the runner's methods."""
        runner = self.runner
        for name in ("execute_model", "_model_forward", "_sample"):
            if not hasattr(runner, name):
                raise EngineError(
                    f"the engine's {type(runner).__name__} has no {name}; use a version of vLLM "
                    "that has, with the environment variable VLLM_USE_V2_MODEL_RUNNER=0"
                )
        execute, forward = runner.execute_model, runner._model_forward
        sample = runner._sample

        def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self._take_in(scheduled)
            return execute(scheduled, *args, **kwargs)

        def _model_forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(forward, args, kwargs) if self._runs else forward(*args, **kwargs)

        def _sample(logits: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._sampling:
                return sample(logits, *args, **kwargs)
            return self._sampled(sample, logits, args, kwargs)

        runner.execute_model = execute_model
        runner._model_forward = _model_forward
        runner._sample = _sample

    # requests

    def opened(self, payload: bytes) -> tuple[tuple[Any, ...], EngineRoot]:
        """Unpack a payload, and find the envoy that its paths start from."""
        data = opened(payload)
        rename = rename_in(data)
        root = self._roots.get(repr(rename))
        if root is None:
            root = self._roots[repr(rename)] = EngineRoot(self.runner.get_model(), rename=rename)
        return data, root

    def _take_in(self, scheduled: Any) -> None:
        self._scheduled = scheduled
        # a forward that failed may have left some
        self._sampling = []
        for request_id in scheduled.finished_req_ids:
            self._runs.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            extra = getattr(new.sampling_params, "extra_args", None)
            sent = extra.get(KEY) if extra else None
            if sent is None or new.req_id in self._runs:
                continue
            run = Run(sent["key"], self, Reach(*sent.get("reach", (True, True))))
            self._runs[new.req_id] = self._by_key[run.key] = run
            with torch.inference_mode():
                run.start(sent["payload"])

    def finish(self, key: str, result: Any) -> Any:
        """End a request's programs, and return what they have left."""
        run = self._by_key.pop(key, None)
        if run is None:
            return None
        for request_id, one in list(self._runs.items()):
            if one is run:
                del self._runs[request_id]
        with torch.inference_mode():
            return run.finish(result)

    def ended(self) -> list[str]:
        """List the requests whose programs have ended early, by a fault or by `stop`."""
        return [key for key, run in self._by_key.items() if run.is_over]

    # the model

    def add_tap(self, tap: RequestTap) -> None:
        """Let a module offer its values to a request, too."""
        module: nn.Module = tap.place._module
        found = self._taps.get(id(module))
        if found is None:
            found = self._taps[id(module)] = EngineTap(self, module)
            install_tap(found, module)  # type: ignore[arg-type]
        found.taps[id(tap.driver)] = tap

    def remove_tap(self, tap: RequestTap) -> None:
        """Take a request off a module, and the tap with the last one."""
        module: nn.Module = tap.place._module
        found = self._taps.get(id(module))
        if found is None:
            return
        found.taps.pop(id(tap.driver), None)
        if not found.taps:
            del self._taps[id(module)]
            remove_tap(module)

    def _forward(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.thread = get_ident()
        self.slots = self._spans(_tokens_in(args, kwargs))
        try:
            return forward(*args, **kwargs)
        finally:
            for slot in self.slots:
                if slot.is_offered and slot.run.pieces:
                    slot.run.forget_pieces()
            self.slots = []

    def _spans(self, total: int) -> list[Slot]:
        """Find each program's tokens in the flat batch, and let its step begin."""
        batch = self.runner.input_batch
        slots: list[Slot] = []
        self._sampling = []
        start = 0
        for row, request_id in enumerate(batch.req_ids):
            count = self._scheduled.num_scheduled_tokens[request_id]
            run = self._runs.get(request_id)
            begin, start = start, start + count
            if run is None or run.is_over:
                continue
            computed = int(batch.num_computed_tokens_cpu[row])
            again = min(max(run.has_read - computed, 0), count)
            is_piece = computed + count < self.runner.requests[request_id].num_tokens
            new = count - again
            slot = Slot(
                run, computed, Span(begin, again, total), Span(begin + again, new, total), is_piece
            )
            if is_piece:
                # nothing is sampled after it; what it gives is kept where it may be asked for
                if new and not run.reach.may_write and run.reach.meets_prompt:
                    run.pieces += 1
                    run.has_read = computed + count
                elif not again:
                    continue
            else:
                if new:
                    missed = _SPLIT if computed > run.has_read else ""
                    run.has_read = computed + count
                    run.begin_step(missed)
                self._sampling.append((row, slot))
            slots.append(slot)
        return slots

    def _sampled(self, sample: Callable[..., Any], logits: Any, args: Any, kwargs: Any) -> Any:
        sampling, self._sampling = self._sampling, []
        for row, slot in sampling:
            if logits is not None:
                before = logits[row : row + 1]
                before.copy_(slot.run.offer_place("logits", before, not slot.is_offered))
        output = sample(logits, *args, **kwargs)
        for row, slot in sampling:
            tokens = output.sampled_token_ids[row]
            tokens.copy_(slot.run.offer_place("samples", tokens, not slot.is_offered))
        return output


class EngineTap:
    """The tap on a module, for all requests that address it."""

    is_central = True

    __slots__ = ("_calls", "_forward", "driver", "module", "taps")

    def __init__(self, engine: Engine, module: nn.Module) -> None:
        self.driver = engine
        self.module = module
        self.taps: dict[int, RequestTap] = {}
        self._forward: Any = None
        self._calls = 0

    def _next_call(self) -> int:
        """Count the calls of the module in the forward that runs."""
        if self._forward is not self.driver.slots:
            self._forward, self._calls = self.driver.slots, 0
        self._calls += 1
        return self._calls - 1

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, and offer each request its part of the values."""
        visits = [
            (slot, tap)
            for slot in self.driver.slots
            if not slot.run.is_over and (tap := self.taps.get(id(slot.run.driver))) is not None
        ]
        if not visits:
            return call(module, *args, **kwargs)
        if any(slot.run.driver.own_calls for slot, _ in visits if slot.run.driver is not None):
            raise EngineError(
                "hook=True offers a call to other blocks, which an engine runs apart; call the "
                "module without it"
            )
        number = self._next_call()
        fresh: set[int] = set()
        given = (args, kwargs)
        for slot, tap in visits:
            if slot.is_offered:
                slot.run.begin_visit(tap)
            given = self._served(slot, tap, (INPUTS, number), given, fresh)
        args, kwargs = given
        output = call(module, *args, **kwargs)
        for slot, tap in visits:
            output = self._served(slot, tap, (OUTPUT, number), output, fresh)
            if slot.is_offered:
                slot.run.end_visit(tap, args, kwargs, output, slot.span)
        return output

    def _served(
        self, slot: Slot, tap: RequestTap, visit: tuple[str, int], value: Any, fresh: set[int]
    ) -> Any:
        """Keep or offer a request's part of a value; return the value to go on with."""
        run = slot.run
        if slot.again.count:
            value = run.edit_again(tap, visit, value, slot, fresh)
        if slot.is_piece and slot.span.count and not run.reach.may_write:
            run.keep_piece(tap, visit[0], value, slot.span)
        elif slot.is_offered:
            value = run.offer(tap, visit, value, slot, fresh)
        return value


def _tokens_in(args: Any, kwargs: Any) -> int:
    """Return the length of the flat batch, padding included."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        if isinstance(value, torch.Tensor):
            return int(value.shape[0])
    raise EngineError("the engine's forward has neither token ids nor embeddings")
