"""The locations of each layer's contributions to the residual stream.

    from nnsight_dsl import layers_report

    print(layers_report(model, "The Eiffel Tower is in the city of"))

A decoder layer returns `residual_in + attention + mlp`. Where the two contributions can be read
differs by architecture: the output of the attention in Llama, that of a norm behind it in Gemma-2,
that of a projection inside the attention in BLOOM, whose attention adds the residual itself.

The model runs with taps on the operations of each layer's forward and of its submodules' forwards.
From the layer's input on, each addition to a value of the residual stream makes the next one, and
the other operand is a contribution. It is the attention's or the MLP's by its origin, followed
back through modules without weight matrices (norms, dropout, scaling). The report is measured on
that run: if the sum does not hold, it has no locations. A layer that adds less or more than those
two (a state space model, the decoder of an encoder-decoder) is reported as not holding.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.source import SourceOperation
from nnsight_dsl.modeling.base import NNsight
from nnsight_dsl.rendering import rendered
from nnsight_dsl.runtime.errors import InternalError, NotCalledError
from nnsight_dsl.runtime.locations import Place, children_of
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tapping.operations import OperationPlace, function_inside
from nnsight_dsl.tracing.tracer import Tracer
from nnsight_dsl.transforms.bytecode.operations import CALL, LOCAL, RETURN, SUBSCRIPT, operations_of

_ADDITIONS = ("add", "iadd")
_ULPS = 8
"""Tolerance of a sum of three, in units in the last place of the largest value."""

_Key = tuple[int, int]
_Term = tuple[_Key, int, tuple[str, torch.Tensor] | None]
"""A tensor, the number of the addition that takes it, and its location and value."""


class _NoLayerError(Exception):
    """Ends a run whose layers take another first argument than a tensor."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The contributions of one layer to the residual stream.

    Attributes:
        path: path of the layer.
        attention: location of the attention's contribution, None if the sum was not found.
        mlp: location of the MLP's contribution, None if the sum was not found.
        holds: whether `residual_in + attention + mlp == residual_out` on the run.
        largest_error: largest absolute error of that sum; without contributions, the largest
            change of the layer's input.
    """

    path: str
    attention: str | None
    mlp: str | None
    holds: bool
    largest_error: float


@dataclass(frozen=True, slots=True, repr=False)
class LayersReport:
    """The result of `layers_report`; it prints as a table."""

    layers: tuple[LayerReport, ...]

    def __repr__(self) -> str:
        is_terminal = bool(getattr(sys.stdout, "isatty", bool)())
        table = Table(box=box.SIMPLE_HEAD)
        for title in ("layer", "attention", "mlp", "residual_in + attention + mlp", "error"):
            table.add_column(title, no_wrap=True)
        for layer in self.layers:
            table.add_row(
                layer.path,
                layer.attention or "not found",
                layer.mlp or "not found",
                "[green]== residual_out[/]" if layer.holds else "[red]is not verified[/]",
                f"{layer.largest_error:.1e}",
            )
        lines = rendered(table, colour=is_terminal).splitlines()
        return "\n".join(line.rstrip() for line in lines if line.strip())


def layers_report(model: NNsight, *input: Any, **kwargs: Any) -> LayersReport:
    """Find where each layer's attention and MLP add to the residual stream, verified on a run.

    The model runs once, and a second time if the additions are made in functions that its
    submodules call.

    Args:
        model: a wrapped decoder.
        *input: input of the run, as for `model.trace`.
        **kwargs: further arguments of the run.

    Returns:
        The report: for each layer, the locations of both contributions, and whether the layer's
        output was the sum of its input and those two.

    Raises:
        ValueError: the model has no list of layers whose output has their input's shape.

    Example:
        >>> report = layers_report(model, "Hello")
        >>> report.layers[0].attention
        'transformer.h.0.attn.output[0]'
    """
    model._prepare()
    for path, members in _candidates(model._module):
        layers = [model._envoy_at(f"{path}.{name}" if path else name) for name in members]
        try:
            runs = _run(model, layers, input, kwargs, is_deep=False)
        except (NotCalledError, _NoLayerError):
            continue
        if not all(run.keeps_shape for run in runs):
            continue
        reports = [run.report() for run in runs]
        if not all(report.holds for report in reports):
            deep = [run.report() for run in _run(model, layers, input, kwargs, is_deep=True)]
            reports = [
                one if one.holds else other for one, other in zip(reports, deep, strict=True)
            ]
        return LayersReport(tuple(reports))
    raise ValueError(
        f"{type(model._module).__name__} has no list of modules of one class that return what has "
        "the shape of their first input; layers_report() is for models made of decoder layers"
    )


def _candidates(module: nn.Module) -> list[tuple[str, list[str]]]:
    """List paths of lists of modules of one class, the longest first, none inside another."""
    found: list[tuple[str, list[str]]] = []
    for path, one in module.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer, _ in found if outer)
        if not isinstance(one, (nn.ModuleList, nn.Sequential)) or is_inside or not len(one):
            continue
        if len({type(member) for member in one}) == 1 and any(
            True for member in one for _ in member.children()
        ):
            found.append((path, list(children_of(one))))
    return sorted(found, key=lambda candidate: -len(candidate[1]))


@dataclass(frozen=True, slots=True)
class _Event:
    """A visit to a module or an operation; events are in the order of their ends.

    Attributes:
        place: the module or operation.
        operands: keys of its tensor arguments.
        results: the tensors that it returned, by the suffix of the place's path.
    """

    place: Place
    operands: tuple[_Key, ...]
    results: dict[str, tuple[_Key, torch.Tensor]]


class _Recorder:
    """Records the visits in the layers, and copies tensors as large as the residual stream."""

    def __init__(self, sizes: list[int]) -> None:
        self.events: list[_Event] = []
        self._sizes = sizes
        self._alive: list[Any] = []

    def record(self, place: Place, inputs: Any, output: Any, factor: int) -> None:
        """Keep one visit; the driver calls this."""
        # tensors are held, so that their memory is not reused
        self._alive.append((inputs, output))
        size = self._sizes[-1] if self._sizes else 0
        results = {}
        for suffix, value in _parts(output):
            if value.numel() == size and value.is_floating_point():
                results[f".output{suffix}"] = (_key(value), value.detach().clone())
        given = pytree.tree_leaves(inputs)
        operands = tuple(
            _key(one) for one in given if isinstance(one, torch.Tensor) and one.numel() == size
        )
        self.events.append(_Event(place, operands, results))

    def watches(self, place: Place) -> bool:
        """Return True, so that every module is called; the driver calls this."""
        return True


@dataclass(frozen=True, slots=True)
class _LayerRun:
    """One layer's part of a run.

    Attributes:
        layer: the layer.
        before: copy of its input from before the layer ran.
        start: key of its input.
        after: its output, None if that is not a tensor.
        events: the events in it.
    """

    layer: Envoy
    before: torch.Tensor
    start: _Key
    after: torch.Tensor | None
    events: Sequence[_Event]

    @property
    def keeps_shape(self) -> bool:
        """Whether the layer's output has the shape of its input."""
        if self.after is None or self.after.is_nested or self.before.is_nested:
            # nested tensors, as torch's encoders make of padded rows, have no shape
            return False
        return bool(self.after.shape == self.before.shape)

    def report(self) -> LayerReport:
        """Follow the residual stream through the layer, and check that the sum holds."""
        if self.after is None:
            raise InternalError("only layers that keep the shape are reported")
        terms = list(self._terms())
        kinds = {
            self._kind(key, before): where for key, before, where in terms if where is not None
        }
        path = self.layer._path
        total, after = self.before.double(), self.after.double()
        if len(terms) != 2 or set(kinds) != {"attention", "mlp"}:
            return LayerReport(path, None, None, False, _distance(total, after))
        attention, mlp = kinds["attention"], kinds["mlp"]
        parts = [self.before, attention[1].view_as(after), mlp[1].view_as(after)]
        total = sum((part.double() for part in parts[1:]), total)
        error = _distance(total, after)
        scale = max(float(part.abs().max()) for part in [*parts, self.after])
        epsilon = _ULPS * torch.finfo(self.after.dtype).eps
        if not torch.allclose(total, after, rtol=epsilon, atol=epsilon * scale):
            return LayerReport(path, None, None, False, error)
        return LayerReport(path, attention[0], mlp[0], True, error)

    def _terms(self) -> Iterator[_Term]:
        """Find the tensors that are added to the residual stream, each with its location."""
        stream = {self.start}
        for number, event in enumerate(self.events):
            if not _is_addition(event) or len(event.operands) != 2 or not event.results:
                continue
            (result, _) = event.results[".output"]
            others = [key for key in event.operands if key not in stream]
            if len(others) == 1:
                yield from self._split(others[0], number)
                stream.add(result)

    def _split(self, key: _Key, before: int) -> Iterator[_Term]:
        """Split a tensor that is itself a sum, as that of a parallel attention and MLP."""
        added = module = -1
        for number, event in enumerate(self.events[:before]):
            if any(key == made for made, _ in event.results.values()):
                if _is_addition(event):
                    added = number
                elif not isinstance(event.place, OperationPlace):
                    module = number
        if added > module:
            # also in place: the sum then has the memory of its first operand
            for operand in self.events[added].operands:
                yield from self._split(operand, added)
        else:
            yield key, before, self._location(key, before)

    def _location(self, key: _Key, before: int) -> tuple[str, torch.Tensor] | None:
        """Return a tensor's location and value: of a module, else of an operation."""
        visits = Counter(event.place._path for event in self.events)
        found = None
        for event in reversed(self.events[:before]):
            if visits[event.place._path] != 1 or event.place is self.layer:
                continue
            for suffix, (made, value) in event.results.items():
                if made != key:
                    continue
                if not isinstance(event.place, OperationPlace):
                    return f"{event.place._path}{suffix}", value
                operation = event.place._operation()
                is_own = operation is None or operation.kind not in (LOCAL, RETURN, SUBSCRIPT)
                if found is None and is_own:
                    found = f"{event.place._path}{suffix}", value
        return found

    def _kind(self, key: _Key, before: int) -> str | None:
        """Return the kind of a contribution, by the part that made it."""
        todo, seen = [(key, before)], set()
        while todo:
            key, before = todo.pop()
            if key in seen or key == self.start:
                continue
            seen.add(key)
            for number in reversed(range(before)):
                event = self.events[number]
                if not any(key == made for made, _ in event.results.values()):
                    continue
                kind = self._kind_of_part(event.place)
                if kind is not None:
                    return kind
                todo.extend((operand, number) for operand in event.operands)
        return None

    def _kind_of_part(self, place: Place) -> str | None:
        """Return the kind of the layer's part that a place is in, None for one without matrices."""
        above = len(self.layer._path) + 1
        name = place._path[above:].partition(".")[0]
        part = children_of(self.layer._module).get(name)
        if part is None or all(parameter.dim() < 2 for parameter in part.parameters()):
            return None
        is_attention = "att" in name.lower() or "attention" in type(part).__name__.lower()
        return "attention" if is_attention else "mlp"


def _run(
    model: NNsight,
    layers: Sequence[Envoy],
    given: tuple[Any, ...],
    options: dict[str, Any],
    *,
    is_deep: bool,
) -> list[_LayerRun]:
    """Run the model, and return each layer's part of the run."""
    sizes: list[int] = []
    starts: list[int] = []
    begun: list[tuple[torch.Tensor, _Key]] = []
    recorder = _Recorder(sizes)
    places = [place for layer in layers for place in _places(layer, is_deep=is_deep)]

    def enter(value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            raise _NoLayerError
        sizes.append(value.numel())
        starts.append(len(recorder.events))
        begun.append((value.detach().clone(), _key(value)))

    def watch(tracer: Tracer) -> None:
        driver, machine = tracer._driver, current_machine()
        if driver is None or machine is None:
            raise InternalError("called in a block that runs")
        driver.watch_for(places, machine)
        driver.watchers.append(recorder)

    # C functions, since an interrupt cannot leave them half done
    before = torch.is_grad_enabled()
    try:
        torch._C._set_grad_enabled(False)
        with model.trace(*given, **options) as tracer:
            watch(tracer)
            for layer in layers:
                enter(layer.input)
    finally:
        torch._C._set_grad_enabled(before)
    runs = []
    ends = [*starts[1:], len(recorder.events)]
    for layer, (before, key), first, last in zip(layers, begun, starts, ends, strict=True):
        inside = f"{layer._path}."
        events = [
            event
            for event in recorder.events[first:last]
            if event.place is layer or event.place._path.startswith(inside)
        ]
        own = [event for event in events if event.place is layer]
        results = [value for event in own for _, value in event.results.values()]
        runs.append(_LayerRun(layer, before, key, results[0] if results else None, events))
    return runs


def _places(layer: Envoy, *, is_deep: bool) -> Iterator[Place]:
    """List a layer, its submodules, and the operations of its forward and its children's."""
    yield layer
    below = [layer._envoy_at(path) for path, _ in layer._module.named_modules() if path]
    yield from below
    for owner in (layer, *layer._places_below()):
        for operation in _operations(owner):
            yield operation
            # the function that the operation called in an earlier run
            function = function_inside(operation)
            kind = operation._operation()
            if not is_deep or function is None or kind is None or kind.kind != CALL:
                continue
            if operation._module_called() is None and not function.__module__.startswith("torch"):
                yield from _operations(operation)


def _operations(place: Place) -> Iterator[SourceOperation]:
    function = function_inside(place)
    for name in operations_of(function.__code__) if function is not None else ():
        yield SourceOperation(place, name)


def _is_addition(event: _Event) -> bool:
    operation = event.place._operation() if isinstance(event.place, OperationPlace) else None
    return operation is not None and operation.label in _ADDITIONS and ".output" in event.results


def _parts(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """List the tensors of an output, each with its suffix."""
    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            if isinstance(item, torch.Tensor):
                yield f"[{number}]", item


def _key(value: torch.Tensor) -> _Key:
    """Return the identity of a tensor while it is held, the same for views of all of it."""
    return value.data_ptr(), value.numel()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max()) if one.numel() else 0.0
