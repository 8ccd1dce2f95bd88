"""Offers: a value while machines can see it, and what they do to it.

A machine sees its own rows of the value, and what it writes is spliced back. A replaced tensor is
remembered: an edit of it by another machine, through a view handed out before, would have no
effect, and is an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from .errors import StaleEditError, WriteError
from .gradients import note_view
from .locations import Place, name_of
from .machine import Machine
from .rows import Rows, leaves_of, narrow, widen
from .tracebacks import traceback_at
from .values import misfit, port_value, with_port_value

if TYPE_CHECKING:
    from .taps import Tap


class Offer:
    """A value that is being offered, and may be replaced while it is.

    The driver makes one and sets its attributes: an `__init__` would cost as much as the rest.

    Attributes:
        tap: where.
        phase: `"inputs"` before a call, `"output"` after it.
        index: which occurrence.
        value: `(args, kwargs)` or the output.
        is_whole: whether every invoke sees all of it, as in a call that a block makes itself.
        handed: containers that were made for some rows: rows, port, container and its leaves.
    """

    tap: Tap
    phase: str
    index: int | None
    value: Any
    is_whole: bool
    handed: Sequence[tuple[Rows, str, Any, list[Any]]] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """A value that takes the place of a module's output, and where that was asked for."""

    value: Any
    rows: Rows | None
    filename: str
    line: int
    function: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A write that changed the form of a value, in case the model fails on it."""

    filename: str
    line: int
    function: str
    location: str
    difference: str


def seen_by(machine: Machine, offer: Offer, port: str, factor: int) -> Any:
    """Return what a machine sees of an offer."""
    value = port_value(offer.value, port)
    if machine.rows is None or offer.is_whole:
        return value
    seen = narrow(value, machine.rows, factor)
    if isinstance(seen, torch.Tensor) and seen is not value:
        span = machine.rows.span_in(value, factor)
        if span is not None:
            note_view(seen, value, *span)
    if not isinstance(seen, torch.Tensor):
        leaves = leaves_of(seen)
        offer.handed = [*offer.handed, (machine.rows, port, seen, leaves)]
    return seen


def take_edits(offer: Offer, factor: int) -> None:
    """Put into the batch what blocks have set in containers that were made for their rows."""
    handed = [*offer.handed]
    for number, (rows, port, container, before) in enumerate(handed):
        leaves = leaves_of(container)
        same = len(leaves) == len(before)
        if same and all(a is b for a, b in zip(leaves, before, strict=True)):
            continue
        whole = port_value(offer.value, port)
        new = widen(whole, container, rows, factor)
        offer.value = with_port_value(offer.value, port, new)
        handed[number] = rows, port, container, leaves
    offer.handed = handed


def skipped_output(
    tap: Tap, call: Callable[..., Any], module: Any, args: Any, kwargs: Any, factor: int
) -> Any:
    """Return the output of a module that some or all machines have asked to skip."""
    skips, tap.skips = tap.skips, ()
    tap.skipped_by = skips[-1].line
    # as with writes, the last word on a row holds
    whole = [number for number, skip in enumerate(skips) if skip.rows is None]
    if whole:
        output, skips = skips[whole[-1]].value, skips[whole[-1] + 1 :]
    else:
        by_rows = {skip.rows.start: skip for skip in skips if skip.rows is not None}
        last = [by_rows[start] for start in sorted(by_rows)]
        rows = [skip.rows for skip in last if skip.rows is not None]
        if sum(one.count for one in rows) == rows[0].total:
            return pytree.tree_map(_joined, *[skip.value for skip in last])
        # the others need the module, and its caches need all rows: run it, then replace
        tap.skipped_by = None
        output = call(module, *args, **kwargs)
    for skip in skips:
        if skip.rows is not None:
            try:
                output = widen(output, skip.value, skip.rows, factor)
            except WriteError as error:
                error.__traceback__ = traceback_at(skip.filename, skip.line, skip.function)
                raise
    return output


def _joined(*parts: Any) -> Any:
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) and parts[0].ndim else parts[0]


class Writes:
    """What the machines of a run have written.

    Attributes:
        suspects: writes that changed the form of a value.
        replaced: tensors that were replaced, with their version, location and who replaced them.
    """

    def __init__(self) -> None:
        self.suspects: list[Suspect] = []
        self.replaced: list[tuple[weakref.ref[torch.Tensor], int, str, int]] = []

    def put(
        self,
        machine: Machine,
        offer: Offer,
        location: tuple[Place, str],
        seen: Any,
        new: Any,
        factor: int,
    ) -> None:
        """Put a value in the place of the one that a machine sees."""
        port = location[1]
        if machine.rows is None or offer.is_whole:
            difference = misfit(seen, new) if new is not seen else None
            if difference is not None:
                self._suspect(machine, name_of(*location), difference)
        elif new is not seen or not isinstance(new, torch.Tensor):
            whole = port_value(offer.value, port)
            new = widen(whole, new, machine.rows, factor)
            self._remember_replaced(machine, whole, new, name_of(*location))
        else:
            return
        offer.value = with_port_value(offer.value, port, new)
        # containers of what stood here before are nobody's from now on
        offer.handed = ()

    def _suspect(self, machine: Machine, location: str, difference: str) -> None:
        program = machine.program
        self.suspects.append(
            Suspect(program.filename, machine.line, program.name, location, difference)
        )

    def _remember_replaced(self, machine: Machine, whole: Any, new: Any, location: str) -> None:
        pairs = zip(pytree.tree_leaves(whole), pytree.tree_leaves(new), strict=True)
        for old, leaf in pairs:
            if old is not leaf and isinstance(old, torch.Tensor) and not old.is_inference():
                entry = (weakref.ref(old), old._version, location, machine.order)
                self.replaced.append(entry)

    def check(self, machine: Machine) -> None:
        """Look whether a machine has edited what another one had replaced before."""
        known, self.replaced = self.replaced, []
        for entry in known:
            reference, version, location, order = entry
            tensor = reference()
            if tensor is None:
                continue
            if tensor._version == version:
                self.replaced.append(entry)
            elif order != machine.order:
                raise StaleEditError(
                    f"a tensor of {location} was edited in place after another invoke had "
                    "replaced it, so the edit would have no effect; read the location again "
                    "after the replacement, or edit it before"
                )
