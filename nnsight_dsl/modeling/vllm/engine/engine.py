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
from contextlib import nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling.vllm.client.effects import Reach
from nnsight_dsl.modeling.vllm.engine.operations import Inside
from nnsight_dsl.modeling.vllm.engine.portions import Portion, copies_of
from nnsight_dsl.modeling.vllm.engine.ranks import WATCH, Leader
from nnsight_dsl.modeling.vllm.engine.request_driver import (
    ModuleTap,
    OperationRequestTap,
    RequestDriver,
    RequestTap,
)
from nnsight_dsl.modeling.vllm.engine.request_run import Run
from nnsight_dsl.modeling.vllm.engine.slots import Slot
from nnsight_dsl.modeling.vllm.engine.time_limit import Limit
from nnsight_dsl.modeling.vllm.engine.token_spans import Span
from nnsight_dsl.modeling.vllm.engine_places import EngineRoot
from nnsight_dsl.modeling.vllm.payload import KEY, opened, rename_in
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.tapping.checkpoints import INPUTS, OUTPUT
from nnsight_dsl.runtime.tapping.taps import install_tap, remove_tap

_SPLIT = (
    "this prompt was computed in pieces, and a block that can change what modules give needs it as "
    "a whole; make the engine with max_num_batched_tokens for the longest prompt, or only read, by "
    "accesses in the block itself"
)

_PREEMPTED = (
    "this request was taken out of the engine and computed again, and its block had changed the "
    "value of an operation, or of a module that lies over several workers, which is not repeated; "
    "give the engine more memory for its cache (gpu_memory_utilization, or fewer requests at once)"
)


class Engine:
    """What a worker keeps of its requests' programs.

    Attributes:
        thread: where the model runs.
        is_compiled: whether the model's modules are not called one by one.
        slots: the requests whose values the forward that runs is to offer.
        special: those of them of which more is to be done than that.
        forward: how many forwards have begun.
        serving: the driver whose programs are being advanced.
        limit: how long a program may go on without asking for a value.
        leader: tells the other ranks what to do, where the model lies over several.
    """

    is_in_backward = False

    def __init__(self, runner: Any, seconds: float, group: Any | None = None) -> None:
        self.runner = runner
        self.thread = get_ident()
        self.slots: list[Slot[Run]] = []
        self.special: list[Slot[Run]] = []
        self.forward = 0
        self.serving: RequestDriver | None = None
        self.limit = Limit(seconds)
        self.is_compiled = bool(runner.compilation_config.mode)
        self._runs: dict[str, Run] = {}
        self._by_key: dict[str, Run] = {}
        self._ids: dict[str, str] = {}
        self._roots: dict[str, EngineRoot] = {}
        self._taps: dict[int, EngineTap] = {}
        self._insides: dict[int, Inside] = {}
        self._weights: frozenset[int] | None = None
        self._scheduled: Any = None
        self._sampling: list[tuple[int, Slot[Run]]] = []
        self.leader = None if group is None else Leader(self, group)
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
            if not self._sampling and self.leader is None:
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
            root._is_sharded = self.leader is not None
        return data, root

    def runs(self) -> list[Run]:
        """List the requests that are in the engine with programs."""
        return list(self._runs.values())

    def _take_in(self, scheduled: Any) -> None:
        self._scheduled = scheduled
        if self.leader is not None:
            self.leader.begin_step()
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
        with torch.inference_mode(), nullcontext() if self.leader is None else self.leader.apart():
            return run.finish(result)

    def ended(self) -> list[str]:
        """List the requests whose programs have ended early, by a fault or by `stop`."""
        return [key for key, run in self._by_key.items() if run.is_over]

    def count_taps(self) -> int:
        """Count the modules that carry a tap."""
        return len(self._taps)

    # the model

    def add_tap(self, tap: ModuleTap) -> EngineTap:
        """Let a module offer its values to a request, too; return the module's one tap."""
        module: nn.Module = tap.place._module
        found = self._taps.get(id(module))
        if found is None:
            found = self._taps[id(module)] = EngineTap(self, module)
            install_tap(found, module)  # type: ignore[arg-type]
        found.taps[id(tap.driver)] = tap
        return found

    def remove_tap(self, tap: ModuleTap) -> None:
        """Take a request off a module, and the tap with the last one."""
        module: nn.Module = tap.place._module
        found = self._taps.get(id(module))
        if found is None:
            return
        found.taps.pop(id(tap.driver), None)
        if not found.taps:
            del self._taps[id(module)]
            remove_tap(module)

    def add_operation(self, tap: OperationRequestTap) -> None:
        """Let an operation in a module's forward offer its values to a request, too."""
        module = tap.place._owner
        inside = self._insides.get(id(module))
        if inside is None:
            inside = self._insides[id(module)] = Inside(self, module)
        inside.add(tap)

    def remove_operation(self, tap: OperationRequestTap) -> None:
        """Take a request off an operation."""
        inside = self._insides.get(id(tap.place._owner))
        if inside is not None and inside.remove(tap):
            del self._insides[id(tap.place._owner)]

    def inside(self, module: nn.Module) -> Inside | None:
        """Return the operations that are addressed in a module's forward, None without any."""
        return self._insides.get(id(module))

    @property
    def weights(self) -> frozenset[int]:
        """Where the model's weights and buffers lie in memory."""
        if self._weights is None:
            model = self.runner.get_model()
            found = (*model.parameters(), *model.buffers())
            self._weights = frozenset(one.untyped_storage().data_ptr() for one in found)
        return self._weights

    def _forward(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.thread = get_ident()
        self.forward += 1
        self.slots = self._spans(_tokens_in(args, kwargs))
        self.special = [slot for slot in self.slots if slot.is_special]
        if self.leader is not None:
            self.leader.begin_forward()
        try:
            return forward(*args, **kwargs)
        finally:
            for slot in self.slots:
                if slot.is_offered and slot.run.pieces:
                    slot.run.forget_pieces()
                if slot.run.driver is not None:
                    slot.run.driver.slot = None
            self.slots = self.special = []

    def _spans(self, total: int) -> list[Slot[Run]]:
        """Find each program's tokens in the flat batch, and let its step begin."""
        batch = self.runner.input_batch
        slots: list[Slot[Run]] = []
        self._sampling = []
        start = 0
        for row, request_id in enumerate(batch.req_ids):
            count = self._scheduled.num_scheduled_tokens[request_id]
            run = self._runs.get(request_id)
            begin, start = start, start + count
            if run is None or run.is_over:
                continue
            computed = int(batch.num_computed_tokens_cpu[row])
            again = run.has_read - computed
            # nothing, but for a request that was taken out and is computed again
            again = 0 if again <= 0 else min(again, count)
            if again and run.cannot_repeat:
                run.fail(EngineError(_PREEMPTED))
                continue
            is_piece = computed + count < self.runner.requests[request_id].num_tokens
            new = count - again
            slot = Slot(
                run, computed, Span(begin, again, total), Span(begin + again, new, total), is_piece
            )
            if is_piece:
                # nothing is sampled after it; what it gives is kept where it may be asked for
                is_kept = run.reach.meets_prompt and not run.reach.may_write
                if new and is_kept and self.leader is None:
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
            if run.driver is not None:
                run.driver.slot = slot
        return slots

    def _sampled(self, sample: Callable[..., Any], logits: Any, args: Any, kwargs: Any) -> Any:
        sampling, self._sampling = self._sampling, []
        self._offer_rows("logits", sampling, logits)
        output = sample(logits, *args, **kwargs)
        self._offer_rows("samples", sampling, output.sampled_token_ids)
        return output

    def _offer_rows(self, name: str, sampling: list[tuple[int, Slot[Run]]], rows: Any) -> None:
        """Offer each request its row of the logits, or its sampled token."""
        leader = self.leader
        with nullcontext() if leader is None else leader.stopped(name, OUTPUT):
            for number, slot in sampling if rows is not None else ():
                if not slot.run.addresses(name):
                    continue
                row = rows[number : number + 1] if name == "logits" else rows[number]
                new = slot.run.offer_place(name, row, not slot.is_offered)
                if new is row:
                    continue
                if leader is not None and not torch.equal(new, row):
                    leader.row(number, new)
                row.copy_(new)


class EngineTap:
    """The tap on a module, for all requests that address it.

    Attributes:
        taps: what each request knows of the module.
        forward: number of the last forward that called it, 0 for none.
        begun: calls that have begun in that forward.
        done: calls that have ended in it.
        is_first_done: whether the first of them has.
        is_entered: see `runtime.taps.Tap`.
        running: number of the call that runs, None where none does.
    """

    is_common = False

    __slots__ = (
        "begun",
        "done",
        "driver",
        "forward",
        "is_entered",
        "is_first_done",
        "module",
        "running",
        "taps",
    )

    def __init__(self, engine: Engine, module: nn.Module) -> None:
        self.driver = engine
        self.module = module
        self.taps: dict[int, ModuleTap] = {}
        self.forward = self.begun = self.done = 0
        self.is_first_done = self.is_entered = False
        self.running: int | None = None

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, and offer each request its part of the values."""
        engine = self.driver
        if engine.serving is not None and engine.serving.own_calls:
            raise EngineError(
                "hook=True offers a call to other blocks, which an engine runs apart; call the "
                "module without it"
            )
        inside = engine.inside(module)
        if inside is not None:
            call = inside.called(call)
        if not engine.slots and engine.leader is None:
            return call(module, *args, **kwargs)
        if self.forward != engine.forward:
            self.forward, self.begun, self.done = engine.forward, 0, 0
            self.is_first_done = False
        outer, self.running = self.running, self.begun
        self.begun += 1
        try:
            args, kwargs, output = self._called(call, module, args, kwargs)
        finally:
            self.is_first_done = self.is_first_done or self.running == 0
            self.done += 1
            self.running = outer
        self._show(args, kwargs, output)
        return output

    def _called(
        self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Call the module, offering what it is given and what it returns; return these."""
        fresh: set[int] = set()
        leader = self.driver.leader
        if leader is None:
            args, kwargs = self._offered(INPUTS, (args, kwargs), fresh)
            output = call(module, *args, **kwargs)
            return args, kwargs, self._offered(OUTPUT, output, fresh)
        number = leader.number(module)
        with leader.stopped(number, INPUTS):
            args, kwargs = self._offered(INPUTS, (args, kwargs), fresh)
        output = call(module, *args, **kwargs)
        with leader.stopped(number, OUTPUT):
            return args, kwargs, self._offered(OUTPUT, output, fresh)

    def _offered(self, phase: str, value: Any, fresh: set[int]) -> Any:
        """Keep, change again or offer each request's part; return the value to go on with."""
        call = self.running or 0
        for slot in self.driver.special:
            tap = self.taps.get(slot.key)
            if tap is not None and not slot.run.is_over:
                value = _again(slot, tap, (phase, call), value, fresh)
        if call > 0:
            # a later call in the same step is none that a request can mean
            return value
        waiting: list[tuple[Slot[Run], ModuleTap]] = []
        for one in self.taps.values():
            if not one.waiting and not one.skips:
                continue
            place: Slot[Run] | None = one.driver.slot
            if place is None or not place.is_offered or place.run.is_over:
                continue
            if one.wants(phase, one.driver.step) or (phase == OUTPUT and one.skips):
                waiting.append((place, one))
        if not waiting:
            return value
        copies = None
        if phase == OUTPUT and self.driver.leader is None:
            copies = copies_of(self.module, value, [slot.span for slot, _ in waiting])
        if copies is None:
            for slot, one in waiting:
                value = slot.run.offer(one, (phase, call), value, slot, fresh)
            return value
        served = []
        for (slot, one), copy in zip(waiting, copies, strict=True):
            portion = Portion(self.module, value, slot.span, fresh, phase, copy=copy)
            slot.run.serve(one, phase, portion)
            served.append((slot, one, portion))
        for slot, one, portion in served:
            value = slot.run.taken(one, (phase, call), value, slot, portion)
        return value

    def _show(self, args: Any, kwargs: Any, output: Any) -> None:
        """Show a visit to the caches."""
        engine = self.driver
        leader = engine.leader
        with nullcontext() if leader is None else leader.stopped(leader.number(self.module), WATCH):
            for slot in engine.slots:
                driver = slot.run.driver
                if driver is None or not driver.watchers or not slot.is_offered:
                    continue
                tap = self.taps.get(slot.key)
                if tap is not None and not slot.run.is_over:
                    slot.run.end_visit(tap, args, kwargs, output, slot.span)


def _again(
    slot: Slot[Run], tap: RequestTap, visit: tuple[str, int], value: Any, fresh: set[int]
) -> Any:
    """Do what a request needs for what was, or is yet to be, offered in another forward."""
    if slot.again.count:
        value = slot.run.edit_again(tap, visit, value, slot, fresh)
    if slot.is_piece and slot.span.count and not slot.run.reach.may_write:
        slot.run.keep_piece(tap, visit[0], value, slot.span)
    return value


def _tokens_in(args: Any, kwargs: Any) -> int:
    """Return the length of the flat batch, padding included."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        if isinstance(value, torch.Tensor):
            return int(value.shape[0])
    raise EngineError("the engine's forward has neither token ids nor embeddings")
