"""Forks: programs that differ in little run as one batch, whose rows part where they must.

Twelve programs patch the same prompt, each at another layer. Up to its own layer, each computes
what the others compute. So the forward begins with one row, the *trunk*, that all machines see.
Where the first write of a machine comes, a copy of the trunk's row is appended to the batch, and
belongs to that machine from there on: its *branch*. Machines that write at other places part at
other places, and the batch grows in steps:

    layer          0    1    2    3
    rows           1    2    3    3
                   |    |    |    `- the last one takes the trunk over: nobody else needs it
                   |    |    `- the second has parted
                   |    `- the first has parted
                   `- the trunk alone

Two things have to be known. `Probe` finds where each machine writes first, in a run of its own:
writes are noted, not done, and values are handed out as copies, so that an edit in place is
noticed, too. `Forking` tells whether the model can be widened there: a forward that has fixed its
number of rows before fails, and has to run as a plain batch. It tells so on fake tensors, without
machines, or in the run itself.

A part of a layer cannot be widened by itself, as its output is added to what went around it. So
the place of a fork is a whole layer (an item of a list of modules): its input, or its output where
that is what is written.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.runtime.errors import RunAborted
from nnsight_dsl.runtime.locations import Place, ancestors, key_of, name_of
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.values.elements import port_value, with_port_value
from nnsight_dsl.runtime.values.offer import Offer, Offered
from nnsight_dsl.runtime.values.rows import Rows, leaves_of
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, Phase, Request

from .driver import Driver

TRUNK = Rows(0, 1, 1)
"""The rows of a machine before anything has parted."""

_WRITES = frozenset({requests.WRITE, requests.ELEMENT, requests.SKIP})


class CannotFork(Exception):
    """Programs cannot share their prefix; the message says why. Control flow, never the user's."""


class Deviated(Exception):
    """A program wrote elsewhere than it was seen to; the message says where. Control flow."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Where rows part from the trunk.

    Attributes:
        place: the module.
        phase: before its call, or after.
    """

    place: Place
    phase: Phase

    @property
    def key(self) -> tuple[int, Phase]:
        """What tells forks apart."""
        return key_of(self.place), self.phase


class _FirstWrite(RunAborted):
    """A machine has come to its first write, and is needed no more. Control flow."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine


class _Copying(Driver):
    """A run that hands copies to machines which share a row, and notes what they do to them."""

    is_direct = False

    def __init__(self, root: Place) -> None:
        super().__init__(root)
        self._handed: list[tuple[Machine, Any, list[Any], list[int]]] = []
        self._passed: list[tuple[weakref.ref[torch.Tensor], int]] = []

    def _shares(self, machine: Machine) -> bool:
        """Tell whether a machine shares its row with others."""
        raise NotImplementedError

    def _edited(self, machine: Machine, tap: Offered, phase: Phase, value: Any) -> None:
        """A machine has written what it shares with others, by request or in place."""
        raise NotImplementedError

    def _obstructed(self, reason: str) -> None:
        """Something has been done that programs with a shared row cannot do."""
        raise NotImplementedError

    def seen(self, machine: Machine, offer: Offer, port: str) -> Any:
        """Hand out a copy, so that the others do not see what is done to it."""
        value = super().seen(machine, offer, port)
        if not self._shares(machine):
            return value
        copy = pytree.tree_map_only(torch.Tensor, torch.clone, value)
        leaves = leaves_of(copy)
        self._handed.append((machine, copy, leaves, [_version(one) for one in leaves]))
        return copy

    def offer(self, tap: Tap, phase: Phase, value: Any) -> Any:
        """Offer a value, and look what was done to the copies of it."""
        before = len(self._handed)
        result = super().offer(tap, phase, value)
        handed, self._handed = self._handed[before:], self._handed[:before]
        for machine, copy, leaves, versions in handed:
            if _is_changed(copy, leaves, versions):
                self._edited(machine, tap, phase, value)
            tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
            self._passed.extend((weakref.ref(one), one._version) for one in tensors)
        return result

    def _close(self) -> None:
        super()._close()
        for reference, version in self._passed:
            tensor = reference()
            if tensor is not None and tensor._version != version:
                self._obstructed("a value is edited in place after its location has passed")
        if self.watchers:
            self._obstructed("a cache is kept, which has the rows of one machine")


class Probe(_Copying):
    """A run that finds where each machine writes first, and changes nothing.

    Args:
        root: place of the root module.
        ends_programs: whether a machine ends at its first write. On real tensors it would go on
            with values that are not those after the write; fake ones have no values.

    Attributes:
        first_writes: by order of the machine, where it wrote first.
        obstacle: why the machines cannot share rows, if something of theirs speaks against it.
    """

    def __init__(self, root: Place, *, ends_programs: bool) -> None:
        super().__init__(root)
        self._ends_programs = ends_programs
        self.first_writes: dict[int, Fork] = {}
        self.obstacle: str | None = None

    def drive(
        self,
        machine: Machine,
        answer: Any = None,
        error: BaseException | None = None,
        request: Request | None = None,
    ) -> None:
        """Resume a machine, unless it has come to its first write."""
        if machine.is_done:
            return
        try:
            super().drive(machine, answer, error, request)
        except _FirstWrite as found:
            self._end(found.machine)

    def _end(self, machine: Machine) -> None:
        machine.wake()
        try:
            machine.close()
        except BaseException as raised:
            self.failure = raised
            raise RunAborted from None

    def _shares(self, machine: Machine) -> bool:
        return machine.rows is not None

    def offered(self, machine: Machine, request: Request) -> Offer | None:
        """Note a write; let it go nowhere."""
        offer = super().offered(machine, request)
        if offer is None or request[0] not in _WRITES or machine.rows is None:
            return offer
        self._note(machine, offer.tap, offer.phase, offer.value)
        if self._ends_programs:
            raise _FirstWrite(machine)
        nowhere = Offer()
        nowhere.tap = Tap(offer.tap.place, self, is_stepping=False)
        nowhere.phase, nowhere.index = offer.phase, offer.index
        nowhere.value, nowhere.is_whole, nowhere.handed = offer.value, offer.is_whole, ()
        return nowhere

    def _edited(self, machine: Machine, tap: Offered, phase: Phase, value: Any) -> None:
        self._note(machine, tap, phase, value)
        if self._ends_programs and not machine.is_done:
            self._end(machine)

    def _note(self, machine: Machine, tap: Offered, phase: Phase, value: Any) -> None:
        if machine.order in self.first_writes:
            return
        try:
            self.first_writes[machine.order] = _fork_for(tap.place, phase, value)
        except CannotFork as cannot:
            # the user's code runs now, and is not to meet this
            self._obstructed(str(cannot))

    def _obstructed(self, reason: str) -> None:
        self.obstacle = self.obstacle or reason


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, torch.Tensor) else 0


def _is_changed(copy: Any, leaves: Sequence[Any], versions: Sequence[int]) -> bool:
    now = leaves_of(copy)
    return len(now) != len(leaves) or any(
        one is not other or _version(one) != version
        for one, other, version in zip(now, leaves, versions, strict=True)
    )


def _fork_for(place: Place, phase: Phase, value: Any) -> Fork:
    """Find the place at which rows have to part for a write to a value that is offered."""
    layer = place
    for above in ancestors(place):
        parent = above._parent
        if parent is not None and isinstance(parent._module, (nn.ModuleList, nn.Sequential)):
            layer = above
    if layer._module is None:
        raise CannotFork("an operation is written in a module that is no item of a list")
    if layer is place and phase == OUTPUT and isinstance(value, torch.Tensor):
        return Fork(layer, OUTPUT)
    return Fork(layer, INPUTS)


class Forking(_Copying):
    """A run whose batch grows by a row where a machine parts from the trunk.

    Args:
        root: place of the root module.
        forks: where rows part, by the order of the machine they are for.
        orders: of all machines that begin with the trunk; those without a fork stay with it.
    """

    is_tapped_ahead = True

    def __init__(self, root: Place, forks: Mapping[int, Fork], orders: Iterable[int]) -> None:
        super().__init__(root)
        self.total = 1
        self._due: dict[tuple[int, Phase], list[int]] = {}
        self._places = {fork.key[0]: fork.place for fork in forks.values()}
        for order, fork in forks.items():
            self._due.setdefault(fork.key, []).append(order)
        self._in_trunk = set(orders)

    def has_parted_all(self) -> bool:
        """Tell whether all rows have parted that were to."""
        return not self._due

    def _tap_ahead(self) -> None:
        super()._tap_ahead()
        for place in self._places.values():
            self.tap_for(place)

    def _new_tap(self, place: Place) -> Tap:
        if place._module is not None and key_of(place) in self._places:
            return _ForkTap(place, self, is_stepping=False)
        return super()._new_tap(place)

    def _shares(self, machine: Machine) -> bool:
        is_in_trunk = machine.rows is not None and machine.order in self._in_trunk
        return is_in_trunk and len(self._in_trunk) > 1

    def offered(self, machine: Machine, request: Request) -> Offer | None:
        """End the run at a write of a machine that has no row of its own."""
        offer = super().offered(machine, request)
        if offer is not None and request[0] in _WRITES and self._shares(machine):
            self._edited(machine, offer.tap, offer.phase, offer.value)
        return offer

    def _edited(self, machine: Machine, tap: Offered, phase: Phase, value: Any) -> None:
        if self.failure is None:
            self.failure = Deviated(f"at {name_of(tap.place, phase)}")
        raise RunAborted

    def _obstructed(self, reason: str) -> None:
        if self.failure is None:
            self.failure = CannotFork(reason)

    def widened(self, key: tuple[int, Phase], value: Any) -> Any:
        """Let the machines part that are due at a place; return the value with their rows.

        Args:
            key: of the fork.
            value: `(args, kwargs)` before the call, the output after it.
        """
        due = self._due.pop(key, None)
        if due is None:
            return value
        self._in_trunk.difference_update(due)
        # where nobody else needs the trunk, one of them has it for its branch
        new = due if self._in_trunk else due[1:]
        starts = dict.fromkeys(due, 0)
        starts.update((order, self.total + number) for number, order in enumerate(new))
        value = _expanded(value, key[1], self.total, len(new))
        self.total += len(new)
        for machine in self.machines:
            if machine.rows is not None:
                start = starts.get(machine.order, machine.rows.start)
                machine.rows = Rows(start, 1, self.total)
        return value


class _ForkTap(Tap):
    """The tap of a place at which rows part."""

    driver: Forking
    is_common = False

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Widen the arguments before they are offered."""
        if not self.begun:
            args, kwargs = self.driver.widened((key_of(self.place), INPUTS), (args, kwargs))
        return super().visit(call, module, args, kwargs)

    def is_awaited(self) -> bool:
        """Have the module called: rows part here."""
        return True

    def _offered(self, output: Any) -> Any:
        # wherever that is: where transformers captures outputs, it is in the midst of the call
        if self.index == 0:
            output = self.driver.widened((key_of(self.place), OUTPUT), output)
        return super()._offered(output)


def _expanded(value: Any, phase: Phase, total: int, added: int) -> Any:
    """Append copies of the trunk's row to the tensors that have a row for each of the batch.

    While there is but one row, everything has one: then only the stream itself is widened, which
    is the first argument, and what has one row is broadcast to all.
    """
    if not added:
        return value

    def expanded(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != total:
            return tensor
        copies = tensor.narrow(0, 0, 1).expand(added, *tensor.shape[1:])
        return torch.cat([tensor, copies])

    if total > 1:
        return pytree.tree_map_only(torch.Tensor, expanded, value)
    port = "input" if phase == INPUTS else OUTPUT
    stream = port_value(value, port)
    if not isinstance(stream, torch.Tensor) or stream.ndim == 0 or stream.shape[0] != 1:
        raise CannotFork("what a layer is given has no single row to begin with")
    return with_port_value(value, port, expanded(stream))


def has_row_for_each(alone: Any, together: Any, total: int) -> bool:
    """Tell whether a result that has one row for a batch of one has one for each of several."""
    one, other = _tensors_of(alone), _tensors_of(together)
    return len(one) == len(other) and all(
        b.shape == (total, *a.shape[1:])
        for a, b in zip(one, other, strict=True)
        if a.ndim and a.shape[0] == 1
    )


def _tensors_of(result: Any) -> list[torch.Tensor]:
    # what is deeper is a cache, whose layers have parted at different times
    if isinstance(result, Mapping):
        items = list(result.values())
    else:
        items = list(result) if isinstance(result, (tuple, list)) else [result]
    return [one for one in items if isinstance(one, torch.Tensor)]
