"""Sweeps: one program with many values of its parameters, as one batch that shares its prefix.

    @intervene
    def ablate(model, layer: int):
        model.transformer.h[layer].mlp.output[:] = 0
        return model.lm_head.output[:, -1]

    found = sweep(ablate, over={"layer": range(12)}, model=model, prompt="Hello")
    found[3]                # what ablate.run(model, "Hello", layer=3) returns
    found.points[3]         # {"layer": 3}

The programs run in one forward. Up to the first write of a program, its row is that of the others,
and is computed once (see `nnsight_dsl.runtime.driving.prefix_sharing`). Where a model or a program
does not allow that, they run as a batch with a row for each, and where it makes no batches, one
after the other; `found.form` and `found.reason` say so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.driving.prefix_sharing import (
    CannotFork,
    Deviated,
    Fork,
    Forking,
    Probe,
    has_row_for_each,
)
from nnsight_dsl.runtime.errors import BatchingError, InterventionArgumentError, InterventionError
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.record import is_interrupt
from nnsight_dsl.runtime.tracebacks import clean, raising_at_user, released
from nnsight_dsl.runtime.turns import Turn, in_turn
from nnsight_dsl.studies.dry_run import Belongings, can_rehearse
from nnsight_dsl.studies.sweep_run import SweepRun
from nnsight_dsl.tracing.intervene import Intervention
from nnsight_dsl.tracing.runnable import Batch, Input
from nnsight_dsl.tracing.tracer import Tracer

if TYPE_CHECKING:
    from nnsight_dsl.modeling.base import NNsight

SHARED = "shared"
BATCH = "batch"
LOOP = "loop"

_REFUSED = ("log", "plan", "scan", "stop", "validate")
"""Options of a trace that a run of several programs does not have."""
_MOST_KNOWN = 64
_UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found of the programs of a sweep.

    Attributes:
        forks: where they part, by number.
        reason: why they cannot, None where they can.
        alone: the model's result for one row, where only a run of all programs will show whether
            the model can be widened; None where that is known.
    """

    forks: Mapping[int, Fork] = field(default_factory=dict)
    reason: str | None = None
    alone: tuple[Any] | None = None


_known: WeakKeyDictionary[nn.Module, dict[Any, _Found]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Sweep(Sequence[Any]):
    """What the programs of a sweep returned, in the order of their points.

    Attributes:
        points: the parameters of each program.
        results: the return value of each.
        form: `"shared"`, `"batch"` or `"loop"`: how they ran.
        reason: why they did not share their prefix, None where they did.
    """

    points: tuple[Mapping[str, Any], ...]
    results: tuple[Any, ...]
    form: str
    reason: str | None

    @overload
    def __getitem__(self, item: int) -> Any: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[Any]: ...
    def __getitem__(self, item: int | slice) -> Any:
        return self.results[item]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __repr__(self) -> str:
        why = "" if self.reason is None else f", since {self.reason}"
        return f"<sweep of {len(self.points)} points, run as {self.form}{why}>"


@raising_at_user
def sweep(
    program: Intervention[..., Any],
    *,
    over: Mapping[str, Iterable[Any]],
    model: NNsight,
    prompt: Any,
    share: bool = True,
    **options: Any,
) -> Sweep:
    """Run a program once for each combination of parameters, on one prompt.

    Where a program writes is seen in a run beforehand, which each program ends at its first write;
    nothing that it does to a container or a tensor of its caller then stays.

    Args:
        program: an `@intervene` function.
        over: values of its parameters, by name; of several, all combinations, the last changing
            fastest.
        model: a wrapped model.
        prompt: one input, as for `model.trace`.
        share: False gives each program a separate row from the start.
        **options: further parameters of the program, the same for all; any other keyword is an
            option of the trace.

    Returns:
        The results, with the points they belong to.

    Raises:
        InterventionArgumentError: a parameter is unknown, missing or of another type.

    Example:
        >>> found = sweep(ablate, over={"layer": range(12)}, model=model, prompt="Hello")
        >>> effects = torch.stack([logits[0, token] for logits in found])
    """
    _check_arguments(program, over, model)
    for word in _REFUSED:
        if word in options and word not in program.parameters:
            raise TypeError(f"a sweep has no option {word!r}; give it to a trace of one program")
    values = [_values_of(name, one) for name, one in over.items()]
    points = tuple(dict(zip(over, one, strict=True)) for one in itertools.product(*values))
    names = set(program.parameters) - {"model", "tracer"}
    own = {name: options.pop(name) for name in list(options) if name in names}
    programs = [program.bind(**own, **point) for point in points]
    if not points:
        return Sweep((), (), SHARED, None)
    served = model._run_each(programs, prompt, options)
    if served is not None:
        return Sweep(points, served, BATCH, "an engine serves each program as a separate request")
    return _swept(_Run(model, prompt, options, programs), points, share=share)


def _swept(run: _Run, points: tuple[Mapping[str, Any], ...], *, share: bool) -> Sweep:
    """Run the programs in the quickest form that the model and the programs allow."""
    reason = "share=False was given"
    if _mixes_rows(run.model._module):
        reason = "the model normalises over the batch"
        return Sweep(points, run.alone(), LOOP, reason)
    if share:
        try:
            return Sweep(points, run.shared(), SHARED, None)
        except CannotFork as cannot:
            reason = str(cannot)
    try:
        return Sweep(points, run.batched(), BATCH, reason)
    except BatchingError:
        return Sweep(points, run.alone(), LOOP, f"{reason}, and the model makes no batches")


def _check_arguments(program: Any, over: Any, model: Any) -> None:
    """Refuse arguments of a sweep that are of the wrong type.

    Raises:
        InterventionArgumentError: one is.
    """
    if not isinstance(program, Intervention):
        raise InterventionArgumentError(
            f"the program of this sweep is {program!r}; give a function under @intervene"
        )
    if getattr(type(model), "_run_each", None) is None:
        raise InterventionArgumentError(
            f"model= is of type {type(model).__name__}; give a wrapped model, as "
            "LanguageModel(module, tokenizer=tokenizer)"
        )
    if not isinstance(over, Mapping):
        raise InterventionArgumentError(
            f"over= is {over!r:.80}; give a mapping of parameters to values, as "
            "over={'layer': range(12)}"
        )
    if not over:
        raise InterventionArgumentError(
            "this sweep has no parameter to sweep over; name one, as in over={'layer': range(12)}"
        )


def _values_of(name: str, values: Any) -> list[Any]:
    """Return the values of one parameter; a text is one value, and no list of letters."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InterventionArgumentError(
            f"over={{{name!r}: ...}} is {values!r:.80}, which is one value; give a list of values: "
            f"{{{name!r}: [{values!r:.80}]}}"
        )
    return list(values)


def _mixes_rows(module: nn.Module) -> bool:
    """Tell whether a row of a batch depends on the others, as under batch normalisation."""
    kinds = nn.modules.batchnorm._BatchNorm
    return any(
        isinstance(one, kinds) and (one.training or not one.track_running_stats)
        for one in module.modules()
    )


@dataclass(frozen=True, slots=True)
class _Run:
    model: NNsight
    prompt: Any
    options: Mapping[str, Any]
    programs: Sequence[Intervention[..., Any]]

    def shared(self) -> tuple[Any, ...]:
        """Run all programs in one forward that begins with one row."""
        self.model._prepare()
        batch = self._single_row()
        key = self._key(batch)
        known = _known.setdefault(self.model._module, {})
        driver, machines, was_known = in_turn(
            self.model._family, self._shared_in, batch, key, known
        )
        if not isinstance(driver.failure, Deviated):
            return _results(driver, machines)
        if was_known:
            # its writes depend on more than its parameters: look again
            return self.shared()
        raise InterventionError(
            f"a program of this sweep writes otherwise than when it was looked at "
            f"({driver.failure}); give sweep(..., share=False) where chance or a value decides "
            "where it writes"
        )

    def _shared_in(
        self, turn: Turn, batch: Batch, key: Any, known: dict[Any, _Found]
    ) -> tuple[Forking, Sequence[Machine], bool]:
        """Run all programs; return whether their forks were known from an earlier sweep, too."""
        was_known = key in known
        belongings = self._belongings()
        try:
            found = known[key] if was_known else self._found(batch, key, belongings, turn)
            driver, machines, result = self._together(found, batch, turn)
            self._check(found, driver, result, batch, turn)
        except CannotFork as cannot:
            belongings.put_back()
            self._remember(known, key, _Found(reason=str(cannot)))
            raise
        if isinstance(driver.failure, Deviated):
            belongings.put_back()
            known.pop(key, None)
        elif not was_known:
            self._remember(known, key, replace(found, alone=None))
        return driver, machines, was_known

    def _single_row(self) -> Batch:
        """Return the call of the model with the prompt."""
        for one in self.programs:
            if any(inner.kind == "backward" for inner in one.program.all_programs()):
                raise CannotFork("a program goes back through the graph")
        batch = self.model._merged([Input((self.prompt,))], "trace", self._run().options)
        leaves = [one for one in pytree.tree_leaves((batch.args, batch.kwargs)) if _is_tensor(one)]
        if batch.counts != (1,) or not leaves or {one.shape[:1] for one in leaves} != {(1,)}:
            raise CannotFork("the prompt is not a single row")
        return batch

    def _found(self, batch: Batch, key: Any, belongings: Belongings, turn: Turn) -> _Found:
        """Find where each program parts from the others, or why none can.

        An interrupt of the looking is not an answer, and is raised.
        """
        module = self.model._module
        if key is not None and belongings.is_complete and can_rehearse(module):
            depth = len(turn.record)
            turn.record.append((belongings.put_back,))
            try:
                run = self._run(is_rehearsal=True)
                probe, alone = self._probed(batch, run, turn, ends_programs=True)
            finally:
                turn.record.undo(depth)
            _raise_interrupt(probe)
            if probe.obstacle is not None:
                raise CannotFork(probe.obstacle)
            if probe.failure is None:
                # whether the model can be widened there, the run of all programs shows
                return _Found(self._forks(probe), alone=(alone,))
        probe, alone = self._probed(batch, self._run(is_fake=True), turn, ends_programs=False)
        _raise_interrupt(probe)
        if probe.failure is not None:
            name = type(probe.failure).__name__
            raise CannotFork(f"a program does not run on fake tensors ({name})")
        if probe.obstacle is not None:
            raise CannotFork(probe.obstacle)
        forks = self._forks(probe)
        self._widen(forks, alone, batch, turn)
        return _Found(forks)

    def _probed(
        self, batch: Batch, run: SweepRun, turn: Turn, *, ends_programs: bool
    ) -> tuple[Probe, Any]:
        """Run all programs on one row; return the probe with their writes, and the result."""
        if self.model._splits():
            raise CannotFork("the values of the model are split over processes")
        # containers are copied for a dry run, so that no fake tensor is left in the user's
        machines = [run.start(one, copies=not ends_programs) for one in self.programs]
        probe = Probe(self.model, ends_programs=ends_programs)
        return probe, run.run_shared(probe, machines, batch, turn)

    def _forks(self, probe: Probe) -> dict[int, Fork]:
        beside = self._run().count_beside
        return {order - beside: fork for order, fork in probe.first_writes.items()}

    def _together(
        self, found: _Found, batch: Batch, turn: Turn
    ) -> tuple[Forking, Sequence[Machine], Any]:
        """Run all programs, each on a separate row from its fork on."""
        if found.reason is not None:
            raise CannotFork(found.reason)
        run = self._run()
        beside = run.count_beside
        machines = [run.start(one, copies=False) for one in self.programs]
        forks = {beside + number: fork for number, fork in found.forks.items()}
        driver = Forking(self.model, forks, range(beside, beside + len(machines)))
        return driver, machines, run.run_shared(driver, machines, batch, turn)

    def _check(self, found: _Found, driver: Forking, result: Any, batch: Batch, turn: Turn) -> None:
        """Look whether a model could be widened of which that was not known.

        If it seems not, it is widened on fake tensors and without programs, so that an error of
        theirs is not taken for its.
        """
        _raise_interrupt(driver)
        if isinstance(driver.failure, CannotFork):
            raise driver.failure
        if found.alone is None:
            return
        (alone,) = found.alone
        if driver.failure is not None or not has_row_for_each(alone, result, driver.total):
            self._widen(found.forks, alone, batch, turn)

    def _widen(self, forks: Mapping[int, Fork], alone: Any, batch: Batch, turn: Turn) -> None:
        """Widen the model on fake tensors; raise an error if it cannot be widened."""
        driver = Forking(self.model, forks, range(len(self.programs)))
        together = self._run(is_fake=True).run_shared(driver, [], batch, turn)
        _raise_interrupt(driver)
        failure = driver.failure
        if isinstance(failure, CannotFork):
            raise failure
        if failure is not None:
            name = type(failure).__name__
            raise CannotFork(f"the model cannot be widened in the middle ({name})")
        if not driver.has_parted_all():
            raise CannotFork("a layer that is written is not called by the model alone")
        if not has_row_for_each(alone, together, driver.total):
            raise CannotFork("the model's result does not have a row for each row of the batch")

    def _belongings(self) -> Belongings:
        """Return the objects that the programs, and blocks beside them, can reach."""
        run = self._run()
        named = {"model": self.model, "tracer": run.tracer}
        reached: list[Any] = []
        for one in (self.programs[0], *run.interventions):
            reached += one.names(named).values()
            spelled = one.program.code.co_names
            reached += [one.user_globals[name] for name in spelled if name in one.user_globals]
        for program in self.programs:
            reached += program.bound.values()
        for edit in self.model._edits:
            reached += edit.names.values()
        return Belongings(reached)

    @staticmethod
    def _remember(known: dict[Any, _Found], key: Any, found: _Found) -> None:
        if key is not None:
            while key not in known and len(known) >= _MOST_KNOWN:
                known.pop(next(iter(known)))
            known[key] = found

    def _key(self, batch: Batch) -> Any:
        """Return a key of the facts that decide the forks of this sweep; None if unknown."""
        leaves, structure = pytree.tree_flatten((batch.args, batch.kwargs))
        values, form = pytree.tree_flatten([{**one.bound} for one in self.programs])
        found = [_comparable(one) for one in (*leaves, *values)]
        parts = self.programs[0].program, len(self.model._edits), repr(structure), repr(form)
        return None if _UNKNOWN in found else (*parts, *found)

    def alone(self) -> tuple[Any, ...]:
        """Run one program after the other."""
        return tuple(one.run(self.model, self.prompt, **self.options) for one in self.programs)

    def batched(self) -> tuple[Any, ...]:
        """Run all programs in one forward with a row for each."""
        self.model._prepare()
        return _results(*in_turn(self.model._family, self._batched_in))

    def _batched_in(self, turn: Turn) -> tuple[Driver, Sequence[Machine]]:
        run = self._run()
        machines = [run.start(one, copies=False) for one in self.programs]
        return run.run_batched(machines, self.prompt, turn), machines

    def _run(self, *, is_fake: bool = False, is_rehearsal: bool = False) -> SweepRun:
        tracer = Tracer(self.model, "trace", Input(()), dict(self.options))
        run = tracer._new_run_of(SweepRun, is_fake=is_fake)
        run.is_rehearsal = is_rehearsal
        # a program may use its tracer
        tracer._block_run = run
        return run


def _raise_interrupt(driver: Driver) -> None:
    """Raise the interrupt of a run, which is no error of the programs or the model."""
    failure = driver.failure
    if failure is not None and is_interrupt(failure):
        clean(failure)
        raise failure


def _results(driver: Driver, machines: Sequence[Machine]) -> tuple[Any, ...]:
    failure, driver.failure = driver.failure, None
    if failure is not None:
        clean(failure)
        try:
            raise released(failure)
        finally:
            # the traceback has this frame
            del failure
    return tuple(machine.result for machine in machines)


def _comparable(value: Any) -> Any:
    """Return a key of a value: a program writes at the same places for values of one key."""
    if _is_tensor(value):
        return "tensor", value.shape, value.dtype
    is_plain = value is None or isinstance(value, (bool, int, float, str))
    return (type(value), value) if is_plain else _UNKNOWN


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
