"""Tensor parallelism: rank 0 runs the programs, and the other ranks follow its commands.

With tensor parallelism, each rank runs the same modules on a part of the weights, and a value may
be split over the ranks. A program must see the whole value, and each rank must get its part of a
write.

Programs run on rank 0 only. Where one of them waits for a value, all ranks stop at that module.
The followers (`follower.py`) execute commands of rank 0 until `done`, which lets them continue and
says where to stop next:

| command  | a follower                                                                        |
|----------|-----------------------------------------------------------------------------------|
| `begin`  | makes a `Portion` of one request's tokens of an input or output                   |
| `gather` | contributes its part of a tensor to an all-gather                                 |
| `write`  | receives a tensor, and writes its part of it, in place or into a copy             |
| `keep`   | continues with the written value; without it, replacements are dropped            |
| `row`    | replaces a row of the logits, or a sampled token                                  |
| `random` | sets its random state to that of rank 0, after a program has drawn random numbers |
| `done`   | continues; also has the modules to tap and the places to stop at                  |

For a read of `layer.output`, where the layer's output is split:

    rank 0:      begin, gather, [the program runs], done
    followers:   [make a portion], [all-gather], [wait], [continue]

Running the same program on each rank would need no commands, but then a random number, a clock, the
order of a set or a time limit could make the ranks decide differently, and leave some of them
waiting in a collective forever.

Steps without a request that has programs exchange nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from nnsight_dsl.modeling.vllm.engine.request_driver import RequestDriver
from nnsight_dsl.modeling.vllm.engine.shards import Layout, layout_of
from nnsight_dsl.modeling.vllm.engine.time_limit import Limit
from nnsight_dsl.modeling.vllm.engine.token_spans import Span
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, phase_of

WATCH = "watch"
"""The phase after a call, in which it is shown to caches."""

Stop = tuple[int | str, str]
"""The number of a module, or `"logits"` or `"samples"`, and a phase."""


def group_of(runner: Any) -> Any | None:
    """Return the group of ranks that a model is split over; None if it is on one rank."""
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
    """Rank 0: sends commands to the followers.

    Args:
        engine: the engine, which has the programs.
        group: the group of ranks.

    Attributes:
        stops: the places where all ranks stop, as last sent with `done`. All ranks must agree on
            them, so only `done` sets them.
    """

    def __init__(self, engine: LedEngine, group: Any) -> None:
        self._engine = engine
        self._group = group
        modules = engine.runner.get_model().modules()
        self._numbers = {id(module): number for number, module in enumerate(modules)}
        self.stops: frozenset[Stop] = frozenset()
        # True from the start of a forward with programs to the next step: only then followers stop.
        # `Follower._is_running` is always the same
        self._is_open = False
        # the random states at the start of the stop, to see whether a program has drawn numbers
        self._random: list[torch.Tensor] = []

    def number(self, module: Any) -> int:
        """Return a module's position in `model.modules()`, which is the same on all ranks."""
        return self._numbers[id(module)]

    def begin_step(self) -> None:
        """Begin a step: until its forward begins, the followers do not stop."""
        self._is_open = False
        self._random = self._random_states()

    def begin_forward(self) -> None:
        """Begin a forward with programs: send where to stop."""
        self._is_open = True
        self.done()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run programs between two steps, and restore the random state after it.

        Followers are not listening then, so they could not be sent a new state.
        """
        states = self._random_states()
        try:
            yield
        finally:
            set_random(states, self._engine.runner.device)

    def tell(self, *command: Any) -> None:
        """Send a command to the followers.

        The time limit is paused: it must not end a program between a command and the collective
        that the command announces.
        """
        with self._engine.limit.paused():
            self._group.broadcast_object(command)

    @contextmanager
    def stopped(self, key: int | str, phase: str) -> Iterator[None]:
        """Hold the followers at a place while it is offered, if they stop there.

        Args:
            key: the number of a module, or `"logits"` or `"samples"`.
            phase: INPUTS, OUTPUT or WATCH.
        """
        if not self._is_open or (key, phase) not in self.stops:
            yield
            return
        self._random = self._random_states()
        try:
            yield
        finally:
            self.done()

    def done(self) -> None:
        """Let the followers continue, with the random state and the stops of now."""
        states = self._random_states()
        if not all(map(torch.equal, states, self._random)):
            self.tell("random", states)
        self.stops, taps = self._wanted()
        self.tell("done", taps, self.stops)

    def visit(self, place: Any, phase: str, span: Span) -> RankedVisit:
        """Begin a visit of one request's tokens of a value, on all ranks."""
        self.tell("begin", phase, span)
        return RankedVisit(self, place, phase)

    def gathered(self, where: Any, part: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of a tensor that the ranks hold, in their order."""
        with self._engine.limit.paused():
            self._group.broadcast_object(("gather", where))
            return list(self._group.all_gather(part.contiguous().unsqueeze(0), 0).unbind(0))

    def write(self, where: Any, new: torch.Tensor, edited: bool, layout: Layout | None) -> None:
        """Let the followers write their parts.

        Args:
            where: the path or number of the leaf.
            new: the whole rows.
            edited: True for an edit in place.
            layout: how the rows are split; None if each rank holds all of them.
        """
        new = new.contiguous()
        with self._engine.limit.paused():
            self._group.broadcast_object(("write", where, edited, layout, new.shape, new.dtype))
            self._group.broadcast(new)

    def row(self, number: int, new: torch.Tensor) -> None:
        """Let the followers replace a row of the logits or of the samples."""
        self.tell("row", number, new.cpu())

    def own(self, whole: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the part of rank 0."""
        return layout.own(whole, 0, self._group.world_size)

    def whole_width(self, layout: Layout) -> int:
        """Return the width of the joined tensor."""
        return layout.width(self._group.world_size)

    def _random_states(self) -> list[torch.Tensor]:
        device = self._engine.runner.device
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return states

    def _wanted(self) -> tuple[frozenset[Stop], frozenset[int]]:
        """Collect the places where programs wait, and the modules with a tap.

        They change only while a program runs, which is during a stop, so followers are up to date
        with those sent at the end of each stop.
        """
        stops: set[Stop] = set()
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
    """The ranks that hold one request's tokens of one value; implements `portions.Ranks`."""

    def __init__(self, leader: Leader, place: Any, phase: str) -> None:
        self._leader = leader
        self._place = place
        self._phase = phase
        self._layouts: dict[Any, Layout | None] = {}

    def whole(self, value: Any, where: Any, part: torch.Tensor) -> torch.Tensor:
        """Join a request's rows from the parts of all ranks.

        Args:
            value: the engine's value.
            where: the path or number of the leaf.
            part: the rows of this rank.

        Raises:
            EngineError: it is not known how the tensor is split.
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
        """Return the shape of the joined rows; `whole` has been called for them before."""
        layout = self._layouts[where]
        if layout is None:
            return tuple(part.shape)
        return (*part.shape[:-1], self._leader.whole_width(layout))

    def written(self, where: Any, new: torch.Tensor, edited: bool) -> torch.Tensor:
        """Write joined rows on the other ranks; return the part of this rank."""
        layout = self._layouts[where]
        self._leader.write(where, new, edited, layout)
        return new if layout is None else self._leader.own(new, layout)

    def keep(self) -> None:
        """Let the followers continue with the written value."""
        self._leader.tell("keep")


def _argument(value: Any, where: Any, phase: str) -> int | str | None:
    """Return the argument that a leaf of the inputs belongs to, or the item of a tuple returned.

    Args:
        value: the engine's value.
        where: the path or number of the leaf.
        phase: INPUTS or OUTPUT.

    Returns:
        The position or the name; None for an output that is a single tensor.
    """
    if isinstance(where, int):
        path = pytree.tree_flatten_with_path(value)[0][where][0]
        where = tuple(getattr(step, "idx", getattr(step, "key", None)) for step in path)
    if phase == INPUTS:
        found: int | str = where[1]
        return found
    return where[0] if where else None


def set_random(states: list[torch.Tensor], device: torch.device) -> None:
    """Set the random state of the CPU, and that of the device if there is a second one."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
