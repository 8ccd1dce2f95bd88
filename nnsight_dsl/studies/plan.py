"""Plans: the reads, writes and saves of a block, from a run on fake tensors before it runs.

    with model.plan("The Eiffel Tower is in") as tracer:
        hidden = model.transformer.h[3].output
        last = hidden[:, -1].save()

    print(tracer.plan())

Nothing is computed and no weights are needed. A plan lists each location that is served, with its
shape, dtype and size, and the names that leave the block. A saved view keeps its whole tensor
alive; *held* is the size of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from nnsight_dsl.runtime.driving.log import Log
from nnsight_dsl.tracing.cache import Cache

if TYPE_CHECKING:
    from nnsight_dsl.runtime.locations import Place


@dataclass(frozen=True, slots=True)
class Planned:
    """One value that will be served.

    Attributes:
        location: its location, as `transformer.h.3.output`.
        step: step, or occurrence in a run with one forward.
        verb: `"read"` or `"write"`.
        line: line of the user's file that asks.
        shapes: shape of each tensor in the value.
        dtypes: dtype of each.
        bytes: size of all of them.
    """

    location: str
    step: int
    verb: str
    line: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """One name that will leave the block.

    Attributes:
        name: the name; "return value" for that of an `@intervene` function.
        shapes: shape of each tensor in its value.
        dtypes: dtype of each.
        bytes: size of all of them.
        held: bytes that stay allocated for it, more if it is a view of a larger tensor.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    bytes: int
    held: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The values that a run will serve and keep.

    Attributes:
        served: the values that are served, in order.
        kept: the names that leave.
        held: bytes that stay allocated for all of them together.
        stops_at: location at which the last block ends, and `stop="auto"` may stop the forward;
            None if the whole forward is needed.
    """

    served: tuple[Planned, ...]
    kept: tuple[Kept, ...]
    held: int
    stops_at: str | None

    @property
    def locations(self) -> tuple[str, ...]:
        """The locations, each once, in the order in which they are first served."""
        return tuple(dict.fromkeys(one.location for one in self.served))

    def __str__(self) -> str:
        from rich import box
        from rich.table import Table

        from nnsight_dsl.rendering import rendered

        served = Table(box=box.SIMPLE_HEAD)
        for heading in ("line", "step", "verb", "location", "shape", "dtype", "size"):
            served.add_column(heading)
        for one in self.served:
            served.add_row(
                str(one.line),
                str(one.step),
                one.verb,
                one.location,
                _shapes(one.shapes),
                _dtypes(one.dtypes),
                size(one.bytes),
            )
        kept = Table(box=box.SIMPLE_HEAD)
        for heading in ("kept", "shape", "dtype", "size", "held"):
            kept.add_column(heading)
        for name in self.kept:
            kept.add_row(
                name.name,
                _shapes(name.shapes),
                _dtypes(name.dtypes),
                size(name.bytes),
                size(name.held),
            )
        last = "runs to its end" if self.stops_at is None else f"is needed up to {self.stops_at}"
        summary = f"the forward {last}; {size(self.held)} are kept"
        lines = rendered(served, kept, summary, width=120).splitlines()
        return "\n".join(line.rstrip() for line in lines).strip("\n")


class PlanLog(Log):
    """The log of a fake run, as a plan shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.planned: list[Planned] = []

    def add(self, location: str, step: int, verb: str, line: int, value: Any) -> None:
        """Note a value."""
        tensors = _tensors([value])
        self.planned.append(
            Planned(
                location,
                step,
                verb,
                line,
                tuple(tuple(one.shape) for one in tensors),
                tuple(one.dtype for one in tensors),
                sum(one.nbytes for one in tensors),
            )
        )


def plan_of(log: PlanLog, left: Mapping[str, Any], last: tuple[Place, str] | None) -> Plan:
    """Make the plan of a fake run.

    Args:
        log: its log.
        left: values that have left its blocks, by name.
        last: place and phase at which the last block ended.
    """
    kept = []
    storages: dict[int, int] = {}
    for name, value in left.items():
        tensors = _tensors([value])
        own = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}
        storages.update(own)
        kept.append(
            Kept(
                name,
                tuple(tuple(one.shape) for one in tensors),
                tuple(one.dtype for one in tensors),
                sum(one.nbytes for one in tensors),
                sum(own.values()),
            )
        )
    stops_at = None
    if last is not None:
        place, phase = last
        port = "output" if phase == "output" else "input"
        stops_at = f"{place._path or 'model'}.{port}"
    return Plan(tuple(log.planned), tuple(kept), sum(storages.values()), stops_at)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for leaf in pytree.tree_leaves(list(values)):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif isinstance(leaf, Cache):
            entries = leaf.values()
            found += _tensors([one for e in entries for one in (e.outputs, e.all_inputs)])
    return found


def size(count: int) -> str:
    """Format a number of bytes."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join("×".join(map(str, shape)) or "scalar" for shape in shapes) or "–"


def _dtypes(dtypes: tuple[torch.dtype, ...]) -> str:
    found = dict.fromkeys(str(one).removeprefix("torch.") for one in dtypes)
    return ", ".join(found) or "–"
