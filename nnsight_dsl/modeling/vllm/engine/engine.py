"""The engine: runs programs in a worker of vLLM, between its model runner and the requests.

In each step, a model runner takes the tokens of all requests as one flat batch, runs the model
once, picks each request's last position, computes the logits and samples. A worker extension cannot
replace methods, so three methods are wrapped on the worker's one runner:

| method           | the wrapper                                                          |
|------------------|----------------------------------------------------------------------|
| `execute_model`  | starts the programs of new requests                                  |
| `_model_forward` | finds each request's tokens in the batch; modules offer their values |
| `_sample`        | offers the logits before the call, and the sampled tokens after it   |

For a batch of requests a and b, of which b has a program that waits for layer 3:

    tokens       a a a b                slot of b: start 3, count 1
    layer 3      [4, width]             `EngineTap.visit` offers row 3 to b, as [1, 1, width]

A module has a tap only while a request in the engine addresses it. Without programs, a step costs a
check of an empty dict, and of the list of new requests.

An exception in a program must not end the step, which serves other requests, too: `Run` catches it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling.vllm.engine.engine_tap import EngineTap
from nnsight_dsl.modeling.vllm.engine.intake import new_programs
from nnsight_dsl.modeling.vllm.engine.logprobs import Scores
from nnsight_dsl.modeling.vllm.engine.operations import Inside
from nnsight_dsl.modeling.vllm.engine.ranks import Leader
from nnsight_dsl.modeling.vllm.engine.request_driver import (
    ModuleTap,
    OperationRequestTap,
    RequestDriver,
)
from nnsight_dsl.modeling.vllm.engine.request_run import Run
from nnsight_dsl.modeling.vllm.engine.slots import Slot
from nnsight_dsl.modeling.vllm.engine.time_limit import Limit
from nnsight_dsl.modeling.vllm.engine.token_spans import Span
from nnsight_dsl.modeling.vllm.engine_places import EngineRoot
from nnsight_dsl.modeling.vllm.payload import opened, rename_in
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.tapping.tapped_class import install_tap, remove_tap
from nnsight_dsl.transforms.requests import OUTPUT

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
    """The programs of all requests in one worker.

    Args:
        runner: vLLM's model runner.
        seconds: how long a program may run without asking for a value.
        group: the group of ranks, with this as the first; None if the model is on one device.

    Attributes:
        thread: id of the thread that runs the model; set at the start of each forward.
        is_compiled: True if vLLM has compiled the model, so that no module is called.
        n_tokens: size of the vocabulary.
        has_batch: True if the model puts a batch of one before the tokens, see `Span`.
        slots: requests with programs in the forward that is running; empty between forwards.
        special: those of `slots` with tokens to keep or edits to repeat (see `Slot.is_special`).
        forward: number of forwards that have begun.
        serving: the driver whose programs are running; set by `Run` for the length of a call into
            its programs, None at all other times.
        limit: time limit of a program between two requests for a value.
        leader: sends commands to the other ranks; None if the model is on one device.
    """

    is_in_backward = False
    """Always False: no backward pass runs in an engine."""

    def __init__(self, runner: Any, seconds: float, group: Any | None = None) -> None:
        self.runner = runner
        self.thread = get_ident()
        self.slots: list[Slot[Run]] = []
        self.special: list[Slot[Run]] = []
        self.forward = 0
        self.serving: RequestDriver | None = None
        self.limit = Limit(seconds)
        self.is_compiled = bool(runner.compilation_config.mode)
        self.n_tokens = int(runner.model_config.get_vocab_size())
        self.has_batch = _is_of_transformers(runner.get_model())
        # runs in the engine, by vLLM's id of their request; one leaves when vLLM has finished it
        self._runs: dict[str, Run] = {}
        # the same by the client's key; one leaves when the client has fetched its outcome
        self._by_key: dict[str, Run] = {}
        # envoys of the model, one for each set of aliases that a client uses
        self._roots: dict[str, EngineRoot] = {}
        self._taps: dict[int, EngineTap] = {}
        self._insides: dict[int, Inside] = {}
        self._weights: frozenset[int] | None = None
        # the scheduler's output for the step that is running
        self._scheduled: Any = None
        # the requests to sample in this step, with their rows of the logits
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
        # left over from a step whose forward failed before sampling
        self._sampling = []
        for request_id in scheduled.finished_req_ids:
            self._runs.pop(request_id, None)
        if not scheduled.scheduled_new_reqs:
            return
        running = {request_id: run.key for request_id, run in self._runs.items()}
        for request_id, sent in new_programs(scheduled, running):
            running[request_id] = sent.key
            run = Run(sent.key, self, sent.reach)
            self._runs[request_id] = self._by_key[run.key] = run
            with torch.inference_mode():
                run.start(sent.payload)

    def finish(self, key: str, result: Any) -> Any:
        """End a request's programs; return their `Outcome`, None for an unknown key.

        Args:
            key: the client's key of the request.
            result: its `RequestOutput`, which `tracer.result` returns; None if it was aborted.
        """
        run = self._by_key.pop(key, None)
        if run is None:
            return None
        for request_id, one in list(self._runs.items()):
            if one is run:
                del self._runs[request_id]
        with torch.inference_mode(), nullcontext() if self.leader is None else self.leader.apart():
            return run.finish(result)

    def ended(self) -> list[str]:
        """List the keys of requests whose programs have ended early, by an error or by `stop`."""
        return [key for key, run in self._by_key.items() if run.is_over]

    def count_taps(self) -> int:
        """Count the modules that carry a tap."""
        return len(self._taps)

    # the model

    def add_tap(self, tap: ModuleTap) -> EngineTap:
        """Let a module offer its values to one more request; return the module's tap."""
        module: nn.Module = tap.place._module
        found = self._taps.get(id(module))
        if found is None:
            found = self._taps[id(module)] = EngineTap(self, module)
            install_tap(found, module)  # type: ignore[arg-type]
        found.taps[id(tap.driver)] = tap
        return found

    def remove_tap(self, tap: ModuleTap) -> None:
        """Stop offering a module's values to a request; remove the tap with the last request."""
        module: nn.Module = tap.place._module
        found = self._taps.get(id(module))
        if found is None:
            return
        found.taps.pop(id(tap.driver), None)
        if not found.taps:
            del self._taps[id(module)]
            remove_tap(module)

    def add_operation(self, tap: OperationRequestTap) -> None:
        """Let an operation in a module's forward offer its values to one more request."""
        module = tap.place._owner
        inside = self._insides.get(id(module))
        if inside is None:
            inside = self._insides[id(module)] = Inside(self, module)
        inside.add(tap)

    def remove_operation(self, tap: OperationRequestTap) -> None:
        """Stop offering an operation's values to a request."""
        inside = self._insides.get(id(tap.place._owner))
        if inside is not None and inside.remove(tap):
            del self._insides[id(tap.place._owner)]

    def inside(self, module: nn.Module) -> Inside | None:
        """Return the taps on operations in a module's forward; None without any."""
        return self._insides.get(id(module))

    @property
    def weights(self) -> frozenset[int]:
        """Addresses of the storages of the model's weights and buffers."""
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
        """Make a slot for each request with programs, and begin its programs' step.

        The order of tokens in the batch is that of `input_batch.req_ids`. A request can be

        - in its prompt's last piece, or past its prompt: its step begins, and it is sampled;
        - in an earlier piece of its prompt (chunked prefill): nothing is sampled. Its values are
          kept, if the programs may ask for them, and offered with those of the last piece;
        - recomputed after preemption (`again`): the positions up to `has_read` were offered before.
          Their edits are repeated, and they are not offered again.

        Args:
            total: the length of the batch, padding included.
        """
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
            # positive only for a request that is recomputed after preemption
            again = 0 if again <= 0 else min(again, count)
            if again and run.cannot_repeat:
                run.fail(EngineError(_PREEMPTED))
                continue
            is_piece = computed + count < self.runner.requests[request_id].num_tokens
            new = count - again
            before = Span(begin, again, total, self.has_batch)
            slot = Slot(
                run, computed, before, Span(begin + again, new, total, self.has_batch), is_piece
            )
            if is_piece:
                # kept only without writes: a write to the first piece could depend on the last one
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
        written = [number for number, slot in sampling if slot.run.addresses("samples")]
        metadata = self.runner.input_batch.sampling_metadata
        scores = Scores(self.runner.sampler, metadata, logits, written)
        output = sample(logits, *args, **kwargs)
        changed = self._offer_rows("samples", sampling, output.sampled_token_ids)
        for number, run, new in changed:
            try:
                scores.replace(output.logprobs_tensors, number, int(new))
            except EngineError as error:
                run.fail(error)
        return output

    def _offer_rows(
        self, name: str, sampling: list[tuple[int, Slot[Run]]], rows: Any
    ) -> list[tuple[int, Run, torch.Tensor]]:
        """Offer each request its row of the logits, or its sampled token; apply its edits.

        Returns:
            The rows that were edited: their number, request and new value.
        """
        leader = self.leader
        changed: list[tuple[int, Run, torch.Tensor]] = []
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
                changed.append((number, slot.run, new))
        return changed


def _is_of_transformers(model: nn.Module) -> bool:
    """Return whether vLLM runs a model by the code of transformers."""
    home = "vllm.model_executor.models.transformers"
    return any(cls.__module__.startswith(home) for cls in type(model).__mro__)


def _tokens_in(args: Any, kwargs: Any) -> int:
    """Return the length of the flat batch, padding included."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        if isinstance(value, torch.Tensor):
            return int(value.shape[0])
    raise EngineError("the engine's forward has neither token ids nor embeddings")
