"""A follower: a rank other than the first, which executes the commands of rank 0.

The commands are listed in `ranks.py`. A follower has no programs. It wraps the same methods of its
model runner as `Engine` does, so that it stops where rank 0 stops:

    rank 0 offers the output of layer 3        the follower waits in its tap on layer 3
    rank 0 sends `done`                        both continue with layer 4

If the two disagreed about where to stop, one would wait in a collective forever. So a follower
decides nothing: it stops at the places sent with the last `done`, and in a forward without a
request that has programs, it does not listen at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling.vllm.engine.intake import new_programs
from nnsight_dsl.modeling.vllm.engine.portions import Portion
from nnsight_dsl.modeling.vllm.engine.ranks import WATCH, Stop, set_random
from nnsight_dsl.modeling.vllm.engine.shards import Layout
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.tapping.tapped_class import install_tap, remove_tap
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT


class Follower:
    """A rank other than the first: it has no programs, and executes the commands of rank 0.

    It notes which requests have programs, so that it listens only in steps where rank 0 sends.

    Args:
        runner: vLLM's model runner.
        group: the group of ranks.

    Attributes:
        thread: id of the thread that runs the model; set at the start of each forward.
    """

    is_in_backward = False
    """Always False: no backward pass runs in an engine."""

    def __init__(self, runner: Any, group: Any) -> None:
        self.runner = runner
        self.thread = get_ident()
        self._group = group
        self._modules = list(runner.get_model().modules())
        # the client's keys of requests with programs, by vLLM's ids; rank 0 has the same requests
        self._keys: dict[str, str] = {}
        # the places where all ranks stop; only `done` sets them, but for the end of all requests
        self._stops: frozenset[Stop] = frozenset()
        self._taps: dict[int, FollowerTap] = {}
        # True from the start of a forward with programs to the next step, as `Leader._is_open`
        self._is_running = False
        self._install()

    def _install(self) -> None:
        runner = self.runner
        execute, forward, sample = runner.execute_model, runner._model_forward, runner._sample

        def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            return self.execute(execute, scheduled, args, kwargs)

        def _model_forward(*args: Any, **kwargs: Any) -> Any:
            return self.forward(forward, args, kwargs)

        def _sample(logits: Any, *args: Any, **kwargs: Any) -> Any:
            return self.sample(sample, logits, args, kwargs)

        runner.execute_model = execute_model
        runner._model_forward = _model_forward
        runner._sample = _sample

    def execute(self, execute: Callable[..., Any], scheduled: Any, args: Any, kwargs: Any) -> Any:
        """Run a step, after noting which of its requests have programs."""
        self._is_running = False
        for request_id in scheduled.finished_req_ids:
            self._keys.pop(request_id, None)
        for request_id, sent in new_programs(scheduled, self._keys):
            self._keys[request_id] = sent.key
        return execute(scheduled, *args, **kwargs)

    def forward(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the model; if a request has programs, stop where rank 0 does."""
        self.thread = get_ident()
        if not self._keys:
            return forward(*args, **kwargs)
        self._obey(None, {})
        self._is_running = True
        return forward(*args, **kwargs)

    def sample(self, sample: Callable[..., Any], logits: Any, args: Any, kwargs: Any) -> Any:
        """Sample, with the edits that programs make to logits and samples on rank 0."""
        if self.stops_at("logits", OUTPUT):
            self._obey(None, {}, rows=logits)
        output = sample(logits, *args, **kwargs)
        if self.stops_at("samples", OUTPUT):
            self._obey(None, {}, rows=output.sampled_token_ids)
        return output

    def finish(self, key: str, result: Any) -> None:
        """Forget a request; after the last one with programs, remove all taps."""
        for request_id, one in list(self._keys.items()):
            if one == key:
                del self._keys[request_id]
        if not self._keys:
            self._stops = frozenset()
            self._tap(frozenset())

    def ended(self) -> list[str]:
        """Return nothing: the client asks rank 0."""
        return []

    def count_taps(self) -> int:
        """Count the modules that carry a tap."""
        return len(self._taps)

    def stops_at(self, number: int | str, phase: str) -> bool:
        """Return whether all ranks stop at a place."""
        return self._is_running and (number, phase) in self._stops

    def obey(self, number: int, values: Mapping[str, Any], fresh: set[int]) -> dict[str, Any]:
        """Execute commands of rank 0 until `done`; return the values to continue with.

        Args:
            number: the number of the module.
            values: its inputs, its output, or both, by phase.
            fresh: ids of tensors in them that are copies already.
        """
        return self._obey(self._modules[number], dict(values), fresh)

    def _obey(
        self,
        module: nn.Module | None,
        values: dict[str, Any],
        fresh: set[int] | None = None,
        rows: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        portion: Portion | None = None
        phase = ""
        while True:
            kind, *told = self._group.broadcast_object(None)
            if kind == "begin":
                phase, span = told
                portion = Portion(module, values[phase], span, set() if fresh is None else fresh,
                                  phase)  # fmt: skip
            elif kind == "gather" and portion is not None:
                part = portion.part_at(told[0]).contiguous()
                self._group.all_gather(part.unsqueeze(0), 0)
            elif kind == "write" and portion is not None:
                self._write(portion, *told)
            elif kind == "keep" and portion is not None:
                values[phase] = portion.finished()
            elif kind == "row":
                number, new = told
                if rows is not None:
                    rows[number : number + 1].copy_(new.reshape(rows[number : number + 1].shape))
            elif kind == "random":
                set_random(told[0], self.runner.device)
            elif kind == "done":
                taps, self._stops = told
                self._tap(taps)
                return values
            else:
                raise EngineError(f"a rank was told {kind!r} where that has no meaning")

    def _write(
        self,
        portion: Portion,
        where: Any,
        edited: bool,
        layout: Layout | None,
        shape: Any,
        dtype: torch.dtype,
    ) -> None:
        new = torch.empty(shape, dtype=dtype, device=portion.part_at(where).device)
        self._group.broadcast(new)
        if layout is not None:
            new = layout.own(new, self._group.rank_in_group, self._group.world_size)
        portion._write(where, new.unsqueeze(0), edited)

    def _tap(self, wanted: frozenset[int]) -> None:
        for number in self._taps.keys() - wanted:
            del self._taps[number]
            remove_tap(self._modules[number])
        for number in wanted - self._taps.keys():
            tap = self._taps[number] = FollowerTap(self, number)
            install_tap(tap, self._modules[number])  # type: ignore[arg-type]


class FollowerTap:
    """The tap on a module of a follower.

    Attributes:
        driver: the follower.
        number: the number of the module.
        is_entered: see `runtime.tapping.taps.Tap`.
    """

    __slots__ = ("driver", "is_entered", "number")
    looks_inside = False
    is_common = False
    """Always False, so that the runtime leaves every visit to `visit`."""

    def __init__(self, follower: Follower, number: int) -> None:
        self.is_entered = False
        self.driver = follower
        self.number = number

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, with stops before and after it where rank 0 stops."""
        follower, number = self.driver, self.number
        fresh: set[int] = set()
        if follower.stops_at(number, INPUTS):
            values = follower.obey(number, {INPUTS: (args, kwargs)}, fresh)
            args, kwargs = values[INPUTS]
        output = call(module, *args, **kwargs)
        if follower.stops_at(number, OUTPUT):
            output = follower.obey(number, {OUTPUT: output}, fresh)[OUTPUT]
        if follower.stops_at(number, WATCH):
            follower.obey(number, {INPUTS: (args, kwargs), OUTPUT: output}, fresh)
        return output
