"""Prefix sharing: programs that differ little run as one batch, whose rows fork where they must.

Twelve programs patch the same prompt, each at another layer. Up to its own layer, each computes
the same values as the others. So the forward begins with one row, the *trunk*, that all machines
see. At the first write of a machine, a copy of the trunk's row is appended to the batch, and
belongs to that machine from there on: its *branch*. Machines that write at other places fork
there, and the batch grows in steps:

    layer          0    1    2    3
    rows           1    2    3    3
                   |    |    |    `- the last one takes over the trunk: no other needs it
                   |    |    `- the second has forked
                   |    `- the first has forked
                   `- the trunk alone

Two things must be known. `Probe` finds where each machine writes first, in a separate run: writes
are noted but not made, and values are handed out as copies, so that edits in place are noticed
too. `Forking` shows whether the model can be widened there, on fake tensors without machines or in
the run itself: a forward that has fixed its number of rows before fails, and its programs run as a
plain batch.

A part of a layer cannot be widened alone, since its output is added to the residual stream around
it. So a fork is at a whole layer (an item of a list of modules): at its input, or at its output if
that is the value written.
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
"""The rows of a machine before any fork."""

_WRITES = frozenset({requests.WRITE, requests.ELEMENT, requests.SKIP})


class CannotFork(Exception):
    """Programs cannot share their prefix; the message says why. Control flow, never the user's."""


class Deviated(Exception):
    """A program wrote elsewhere than in the probe; the message says where. Control flow."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A place where rows fork from the trunk.

    Attributes:
        place: the place of the module.
        phase: before its call, or after.
    """

    place: Place
    phase: Phase

    @property
    def key(self) -> tuple[int, Phase]:
        """Key of the fork's place, and its phase."""
        return key_of(self.place), self.phase


class _FirstWrite(RunAborted):
    """A machine has reached its first write, and can end. Control flow."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine


class _Copying(Driver):
    """A run that hands copies to machines that share a row, and detects edits of the copies."""

    is_direct = False

    def __init__(self, root: Place) -> None:
        super().__init__(root)
        self._handed: list[tuple[Machine, Any, Any, list[Any], list[int]]] = []
        self._copies: dict[tuple[int, int], Any] = {}
        self._passed: list[tuple[weakref.ref[torch.Tensor], int]] = []

    def _shares(self, machine: Machine) -> bool:
        """Return whether a machine shares its row with others."""
        raise NotImplementedError

    def _edited(self, machine: Machine, tap: Offered, phase: Phase, value: Any) -> None:
        """Called when a machine has edited its shared row, by request or in place."""
        raise NotImplementedError

    def _obstructed(self, reason: str) -> None:
        """Called when a machine has done something that machines sharing a row cannot do."""
        raise NotImplementedError

    def seen(self, machine: Machine, offer: Offer, port: str) -> Any:
        """Hand out a copy, so that the others do not see edits of it; the same one each time."""
        value = super().seen(machine, offer, port)
        if not self._shares(machine):
            return value
        key = machine.order, id(value)
        if key not in self._copies:
            copy = self._copies[key] = pytree.tree_map_only(torch.Tensor, torch.clone, value)
            leaves = leaves_of(copy)
            versions = [_version(one) for one in leaves]
            # with the value, so that its id stays its own
            self._handed.append((machine, value, copy, leaves, versions))
        return self._copies[key]

    def offer(self, tap: Tap, phase: Phase, value: Any) -> Any:
        """Offer a value, and check the copies of it for edits."""
        before = len(self._handed)
        result = super().offer(tap, phase, value)
        handed, self._handed = self._handed[before:], self._handed[:before]
        for machine, of, copy, leaves, versions in handed:
            del self._copies[machine.order, id(of)]
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
            with values that lack the write; fake ones have no values.

    Attributes:
        first_writes: the fork at each machine's first write, by order of the machine.
        obstacle: why the machines cannot share rows, None if nothing was found.
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
        """Resume a machine, unless it has ended at its first write."""
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
        """Note a write, and direct it to an offer that is dropped."""
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
        nowhere.split, nowhere.views = offer.split, offer.views
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
            # the user's code is running, and must not see this exception
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
    """Find the place at which rows must fork for a write to an offered value."""
    layer = place
    for above in ancestors(place):
        parent = above._parent
        if parent is not None and isinstance(parent._module, (nn.ModuleList, nn.Sequential)):
            layer = above
    if layer._module is None:
        raise CannotFork("an operation is written in a module that is not an item of a list")
    if layer is place and phase == OUTPUT and isinstance(value, torch.Tensor):
        return Fork(layer, OUTPUT)
    return Fork(layer, INPUTS)


class Forking(_Copying):
    """A run whose batch grows by a row where a machine forks from the trunk.

    Args:
        root: place of the root module.
        forks: the fork of each machine that has one, by order of the machine.
        orders: orders of all machines that begin on the trunk; those without a fork stay on it.
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
        """Return whether all forks have been reached."""
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
        """End the run at a write of a machine that still shares its row."""
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
        """Fork the machines that are due at a place; return the value with their rows.

        Args:
            key: key of the fork.
            value: `(args, kwargs)` before the call, the output after it.
        """
        due = self._due.pop(key, None)
        if due is None:
            return value
        self._in_trunk.difference_update(due)
        # if no other machine needs the trunk, one of them takes it as its branch
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
    """The tap of a place at which rows fork."""

    driver: Forking
    is_common = False

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Widen the arguments before they are offered."""
        if not self.begun:
            args, kwargs = self.driver.widened((key_of(self.place), INPUTS), (args, kwargs))
        return super().visit(call, module, args, kwargs)

    def is_awaited(self) -> bool:
        """Return True, so that the module is called: rows fork here."""
        return True

    def _offered(self, output: Any) -> Any:
        # here, since a module whose output transformers captures offers it during the call
        if self.index == 0:
            output = self.driver.widened((key_of(self.place), OUTPUT), output)
        return super()._offered(output)


def _expanded(value: Any, phase: Phase, total: int, added: int) -> Any:
    """Append copies of the trunk's row to the tensors that have the batch dimension.

    In a batch of one row, any tensor with one row may be such. Then only the residual stream is
    widened, which is the first argument or the output; other tensors of one row are broadcast.
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
    """Return whether a result that has one row for a batch of one has one per row for several."""
    one, other = _tensors_of(alone), _tensors_of(together)
    return len(one) == len(other) and all(
        b.shape == (total, *a.shape[1:])
        for a, b in zip(one, other, strict=True)
        if a.ndim and a.shape[0] == 1
    )


def _tensors_of(result: Any) -> list[torch.Tensor]:
    # deeper tensors are those of a KV cache, whose layers have forked at different times
    if isinstance(result, Mapping):
        items = list(result.values())
    else:
        items = list(result) if isinstance(result, (tuple, list)) else [result]
    return [one for one in items if isinstance(one, torch.Tensor)]
