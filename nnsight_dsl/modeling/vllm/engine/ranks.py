"""Several workers that compute one model in step: one leads, the others follow.

With tensor parallelism each rank runs the same modules on a part of the weights. Programs run on
rank 0 alone. Where one of them waits for a value, all ranks stop at that module: the others do what
rank 0 tells them (hand over their part of a tensor, take their part of what was written), until it
says that they can go on, and where to stop next. So a program may draw random numbers, look at the
clock, run out of time or fail: nobody decides by itself, and nobody is left waiting.

| told             | the others                                                           |
|------------------|----------------------------------------------------------------------|
| `begin`          | look at one request's tokens of an input or output                   |
| `gather`         | hand over their part of a tensor                                     |
| `write`          | take their part of a tensor, in place or in a copy of the engine's   |
| `keep`           | go on with what was written; else what was replaced is dropped       |
| `row`            | take a row of logits, or a token that was sampled                    |
| `random`         | set the state of random numbers, of which a program has drawn some   |
| `done`           | go on; with it the modules to tap, and the places to stop at         |

Ranks that hold nothing of a request with programs exchange nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.modeling.vllm.engine.portions import Portion
from nnsight_dsl.modeling.vllm.engine.request_driver import RequestDriver
from nnsight_dsl.modeling.vllm.engine.shards import Layout, layout_of
from nnsight_dsl.modeling.vllm.engine.time_limit import Limit
from nnsight_dsl.modeling.vllm.engine.token_spans import Span
from nnsight_dsl.modeling.vllm.payload import KEY
from nnsight_dsl.runtime.driving.foreign import phase_of
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.tapping.checkpoints import INPUTS, OUTPUT
from nnsight_dsl.runtime.tapping.taps import install_tap, remove_tap

WATCH = "watch"
"""Where a cache is shown a call that is over."""

_Stop = tuple[int | str, str]


def group_of(runner: Any) -> Any | None:
    """Return the group of ranks that a model lies over, None where it lies on one."""
    if runner.parallel_config.tensor_parallel_size == 1:
        return None
    from vllm.distributed import get_tp_group

    return get_tp_group()


class RunningPrograms(Protocol):
    """The programs of one request, as the leader sees them; `Run` in `request_run.py`."""

    is_over: bool

    @property
    def driver(self) -> RequestDriver | None:
        """The driver of the programs, which knows where they wait."""


class LedEngine(Protocol):
    """The engine of rank 0, as the leader sees it.

    Attributes:
        runner: vLLM's model runner.
        limit: the time limit of programs, which is paused while ranks communicate.
    """

    runner: Any
    limit: Limit

    def runs(self) -> Sequence[RunningPrograms]:
        """List the requests with programs that are in the engine."""


class Leader:
    """Rank 0: tells the others what they are to do.

    Attributes:
        stops: where all ranks stop, as the others were last told.
    """

    def __init__(self, engine: LedEngine, group: Any) -> None:
        self._engine = engine
        self._group = group
        modules = engine.runner.get_model().modules()
        self._numbers = {id(module): number for number, module in enumerate(modules)}
        self.stops: frozenset[_Stop] = frozenset()
        self._is_open = False
        self._random: list[torch.Tensor] = []

    def number(self, module: Any) -> int:
        """Return the number by which all ranks know a module."""
        return self._numbers[id(module)]

    def begin_step(self) -> None:
        """A step begins: until its forward does, the others stop nowhere."""
        self._is_open = False
        self._random = self._random_states()

    def begin_forward(self) -> None:
        """A forward begins, in which programs take part: say where all are to stop."""
        self._is_open = True
        self.done()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Do something between two steps, after which the ranks draw the same numbers again."""
        states = self._random_states()
        try:
            yield
        finally:
            _set_random(states, self._engine.runner.device)

    def tell(self, *command: Any) -> None:
        """Tell the others to do something."""
        with self._engine.limit.paused():
            self._group.broadcast_object(command)

    @contextmanager
    def stopped(self, key: int | str, phase: str) -> Iterator[None]:
        """Hold the others at a place while it is offered, if that is where they stop."""
        if not self._is_open or (key, phase) not in self.stops:
            yield
            return
        self._random = self._random_states()
        try:
            yield
        finally:
            self.done()

    def done(self) -> None:
        """Let the others go on."""
        states = self._random_states()
        if not all(map(torch.equal, states, self._random)):
            self.tell("random", states)
        self.stops, taps = self._wanted()
        self.tell("done", taps, self.stops)

    def visit(self, place: Any, phase: str, span: Span) -> RankedVisit:
        """Let all ranks look at one request's tokens of a value."""
        self.tell("begin", phase, span)
        return RankedVisit(self, place, phase)

    def gathered(self, where: Any, part: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts that all ranks hold."""
        with self._engine.limit.paused():
            self._group.broadcast_object(("gather", where))
            return list(self._group.all_gather(part.contiguous().unsqueeze(0), 0).unbind(0))

    def write(self, where: Any, new: torch.Tensor, edited: bool, layout: Layout | None) -> None:
        """Let the others write their part."""
        new = new.contiguous()
        with self._engine.limit.paused():
            self._group.broadcast_object(("write", where, edited, layout, new.shape, new.dtype))
            self._group.broadcast(new)

    def row(self, number: int, new: torch.Tensor) -> None:
        """Let the others take a row of the logits or of the samples."""
        self.tell("row", number, new.cpu())

    def own(self, whole: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return this rank's part."""
        return layout.own(whole, 0, self._group.world_size)

    def whole_width(self, layout: Layout) -> int:
        """Return the width of what all ranks hold together."""
        return layout.width(self._group.world_size)

    def _random_states(self) -> list[torch.Tensor]:
        device = self._engine.runner.device
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return states

    def _wanted(self) -> tuple[frozenset[_Stop], frozenset[int]]:
        """Collect where programs wait, and which modules carry a tap."""
        stops: set[_Stop] = set()
        taps: set[int] = set()
        for run in self._engine.runs():
            driver = run.driver
            if run.is_over or driver is None:
                continue
            for tap in driver._taps.values():
                module = tap.place._module
                if module is None:
                    continue
                key = self._numbers.get(id(module), tap.place._path)
                if isinstance(key, int):
                    taps.add(key)
                    if tap.skips:
                        stops.add((key, OUTPUT))
                    if driver.watchers:
                        stops.add((key, WATCH))
                for machine in tap.waiting:
                    phase = None if machine.pending is None else phase_of(machine.pending)
                    if phase is not None:
                        stops.add((key, phase))
        return frozenset(stops), frozenset(taps)


class RankedVisit:
    """What `Portion` asks of the other ranks at one value of one request."""

    def __init__(self, leader: Leader, place: Any, phase: str) -> None:
        self._leader = leader
        self._place = place
        self._phase = phase
        self._layouts: dict[Any, Layout | None] = {}

    def whole(self, value: Any, where: Any, part: torch.Tensor) -> torch.Tensor:
        """Put a request's rows together from what the ranks hold.

        Raises:
            EngineError: how they lie is not known.
        """
        parent = self._place._parent
        layout = self._layouts[where] = layout_of(
            self._place._module,
            None if parent is None else parent._module,
            self._phase,
            _argument(value, where, self._phase),
            part,
        )
        if layout is None:
            return part
        return layout.joined(self._leader.gathered(where, part))

    def shape(self, where: Any, part: torch.Tensor) -> tuple[int, ...]:
        """Return the shape that whole rows have."""
        layout = self._layouts[where]
        if layout is None:
            return tuple(part.shape)
        return (*part.shape[:-1], self._leader.whole_width(layout))

    def written(self, where: Any, new: torch.Tensor, edited: bool) -> torch.Tensor:
        """Let the others write whole rows, too; return this rank's part."""
        layout = self._layouts[where]
        self._leader.write(where, new, edited, layout)
        return new if layout is None else self._leader.own(new, layout)

    def keep(self) -> None:
        """Go on with what was written, on all ranks."""
        self._leader.tell("keep")


def _argument(value: Any, where: Any, phase: str) -> int | str | None:
    """Return which argument a part of the inputs is in, or which item of a tuple."""
    if isinstance(where, int):
        path = pytree.tree_flatten_with_path(value)[0][where][0]
        where = tuple(getattr(step, "idx", getattr(step, "key", None)) for step in path)
    if phase == INPUTS:
        found: int | str = where[1]
        return found
    return where[0] if where else None


class Follower:
    """Another rank than the first: it has no programs, and does as it is told."""

    is_in_backward = False

    def __init__(self, runner: Any, group: Any) -> None:
        self.runner = runner
        self.thread = get_ident()
        self._group = group
        self._modules = list(runner.get_model().modules())
        self._keys: dict[str, str] = {}
        self._stops: frozenset[_Stop] = frozenset()
        self._taps: dict[int, FollowerTap] = {}
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
        """Run a step, after noting which requests have programs."""
        self._is_running = False
        for request_id in scheduled.finished_req_ids:
            self._keys.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            extra = getattr(new.sampling_params, "extra_args", None)
            if extra and extra.get(KEY) is not None:
                self._keys[new.req_id] = extra[KEY]["key"]
        return execute(scheduled, *args, **kwargs)

    def forward(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the model, stopping where rank 0 wants to."""
        self.thread = get_ident()
        if not self._keys:
            return forward(*args, **kwargs)
        self._obey(None, {})
        self._is_running = True
        return forward(*args, **kwargs)

    def sample(self, sample: Callable[..., Any], logits: Any, args: Any, kwargs: Any) -> Any:
        """Sample, with logits and samples as rank 0 has them."""
        if self.stops_at("logits", OUTPUT):
            self._obey(None, {}, rows=logits)
        output = sample(logits, *args, **kwargs)
        if self.stops_at("samples", OUTPUT):
            self._obey(None, {}, rows=output.sampled_token_ids)
        return output

    def finish(self, key: str, result: Any) -> None:
        """A request is over."""
        for request_id, one in list(self._keys.items()):
            if one == key:
                del self._keys[request_id]
        if not self._keys:
            self._stops = frozenset()
            self._tap(frozenset())

    def ended(self) -> list[str]:
        """List nothing: the first rank knows."""
        return []

    def count_taps(self) -> int:
        """Count the modules that carry a tap."""
        return len(self._taps)

    def stops_at(self, number: int | str, phase: str) -> bool:
        """Tell whether all ranks stop at a place."""
        return self._is_running and (number, phase) in self._stops

    def obey(self, number: int, values: Mapping[str, Any], fresh: set[int]) -> dict[str, Any]:
        """Do what rank 0 says, until it says to go on; return what to go on with."""
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
                _set_random(told[0], self.runner.device)
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


def _set_random(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


class FollowerTap:
    """The tap on a module of a rank that follows."""

    __slots__ = ("driver", "is_entered", "number")
    is_common = False

    def __init__(self, follower: Follower, number: int) -> None:
        self.is_entered = False
        self.driver = follower
        self.number = number

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, and stop before and after it where all do."""
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
