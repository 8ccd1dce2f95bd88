"""Reading and writing offered values.

A machine sees its own rows of a value, and its writes are spliced back. A replaced tensor is
watched: an edit of it by another machine, through a view handed out before, would have no effect,
and is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree
from torch.utils.weak import TensorWeakRef

from nnsight_dsl.runtime.errors import StaleEditError, WriteError
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tracebacks import traceback_at
from nnsight_dsl.transforms.requests import WRITE, Request

from .elements import misfit, port_value, with_port_value
from .offer import Handed, Offer
from .rows import Cut, Rows, joined, leaves_of, narrow, widen
from .views import OfferCut, put_back, separated


@dataclass(frozen=True, slots=True)
class Skip:
    """A value that replaces a module's output, and the line that asked for the skip."""

    value: Any
    rows: Rows | None
    filename: str
    line: int
    function: str


class Skippable(Protocol):
    """A tap whose module can be skipped.

    Attributes:
        skips: replacements for the output of the visit that begins, each for some rows.
        skipped_by: line of the last skip, None if the module is called after all.
        skipped_for: the lines of skips for some rows, where it was called for the others.
        driver: of the run; its `apart` has the rows that are offered nothing inside of the call.
    """

    skips: Sequence[Skip]
    skipped_by: int | None
    skipped_for: Mapping[Rows, int]
    driver: Any


@dataclass(frozen=True, slots=True)
class Suspect:
    """A write that changed the form of a value, in case the model fails on it."""

    filename: str
    line: int
    function: str
    location: str
    difference: str


def seen_by(machine: Machine, offer: Offer, port: str, cut: OfferCut | None) -> Any:
    """Return a machine's part of an offer; without a cut, all of it."""
    if cut is None:
        return port_value(offer.value, port)
    offer.value = separated(offer.value, cut)
    cut.whole.clear()
    value = port_value(offer.value, port)
    if not isinstance(value, torch.Tensor):
        for one in offer.handed:
            if one.whole is value and one.cut.rows is cut.rows and one.port == port:
                cut.whole.extend(one.uncut)
                return one.part
    seen = narrow(value, cut)
    if not isinstance(seen, torch.Tensor) or cut.has_copied:
        offer.handed = [
            *offer.handed,
            Handed(cut, port, value, seen, leaves_of(seen), [*cut.whole]),
        ]
    return seen


def take_edits(offer: Offer) -> None:
    """Write back what blocks have set in containers narrowed to their rows, and in copies."""
    if offer.views:
        put_back(offer)
    handed = [*offer.handed]
    for number, one in enumerate(handed):
        leaves = leaves_of(one.part)
        same = len(leaves) == len(one.leaves)
        if same and all(a is b for a, b in zip(leaves, one.leaves, strict=True)):
            continue
        whole = port_value(offer.value, one.port)
        new = widen(whole, one.part, one.cut)
        offer.value = with_port_value(offer.value, one.port, new)
        handed[number] = one._replace(whole=new, leaves=leaves)
    offer.handed = handed


def skipped_output(
    tap: Skippable, call: Callable[..., Any], module: Any, args: Any, kwargs: Any, factor: int
) -> Any:
    """Return the output of a module that some or all machines skip."""
    skips, tap.skips = tap.skips, ()
    tap.skipped_by = skips[-1].line
    # as with writes, the last skip of a row wins
    whole = [number for number, skip in enumerate(skips) if skip.rows is None]
    if whole:
        output, skips = skips[whole[-1]].value, skips[whole[-1] + 1 :]
    else:
        by_rows = {skip.rows.start: skip for skip in skips if skip.rows is not None}
        last = [by_rows[start] for start in sorted(by_rows)]
        rows = [skip.rows for skip in last if skip.rows is not None]
        if sum(one.count for one in rows) == rows[0].total:
            return pytree.tree_map(
                lambda *parts: joined(rows, factor, parts), *[skip.value for skip in last]
            )
        # other rows need the module, and a KV cache needs all rows: run it, then replace
        tap.skipped_by = None
        tap.skipped_for = {skip.rows: skip.line for skip in last if skip.rows is not None}
        driver, outer = tap.driver, tap.driver.apart
        driver.apart = (*outer, *tap.skipped_for)
        try:
            output = call(module, *args, **kwargs)
        finally:
            driver.apart = outer
    for skip in skips:
        if skip.rows is not None:
            try:
                output = widen(output, skip.value, Cut(skip.rows, factor))
            except WriteError as error:
                error.__traceback__ = traceback_at(skip.filename, skip.line, skip.function)
                raise
    return output


class _Watched:
    """A tensor handed to a block that must not be edited in place."""

    def __init__(self, tensor: torch.Tensor, location: str, order: int) -> None:
        self._tensor = TensorWeakRef(tensor)
        self._version = tensor._version
        self._location = location
        self._order = order

    def begin(self) -> bool:
        """Disregard the model's edits so far; return whether to go on watching."""
        tensor = self._tensor()
        if tensor is None:
            return False
        self._version = tensor._version
        return True

    def look(self, machine: Machine) -> bool:
        """Check whether a machine has edited it; return whether to go on watching."""
        before = self._version
        if not self.begin():
            return False
        if self._version != before:
            self._edited_by(machine)
        return True

    def _edited_by(self, machine: Machine) -> None:
        raise NotImplementedError


class _Replaced(_Watched):
    """A tensor that an invoke has replaced by another one."""

    def _edited_by(self, machine: Machine) -> None:
        if machine.order != self._order:
            raise StaleEditError(
                f"a tensor of {self._location} was edited in place after another invoke had "
                "replaced it, so the edit would have no effect; read the location again "
                "after the replacement, or edit it before"
            )


class _Whole(_Watched):
    """A tensor without rows, watched until the invoke that holds it is parked.

    After that the model itself may edit it.
    """

    def begin(self) -> bool:
        """Stop watching: the model has run meanwhile."""
        return False

    def look(self, machine: Machine) -> bool:
        """Check whether the machine has edited it."""
        tensor = self._tensor()
        if tensor is None or machine.order != self._order:
            return tensor is not None
        if tensor._version != self._version:
            self._edited_by(machine)
        return False

    def _edited_by(self, machine: Machine) -> None:
        raise WriteError(
            f"a tensor of {self._location} that has no rows was edited in place, and this "
            "invoke does not own all rows; edit it from an invoke without an input, which "
            "sees all rows, or edit a clone of it"
        )


class _Shared(_Whole):
    """The same in a run in which such an edit is made for all invokes."""

    def _edited_by(self, machine: Machine) -> None:
        _warn_of_shared(machine, self._location)


def _warn_of_shared(machine: Machine, location: str) -> None:
    warnings.warn_explicit(
        f"a value of {location} that has no rows was written by one invoke, and is that of all; "
        "write it from an invoke without an input",
        UserWarning,
        machine.program.filename,
        machine.line,
    )


class _Answering(Protocol):
    """The member of a run that puts views back."""

    def answer(self, machine: Machine, request: Request) -> Any:
        """Return the answer to a request."""


class WriteBack:
    """A view of a value that was handed to a block, to be put back once the block goes on."""

    def __init__(
        self,
        run: _Answering,
        machine: Machine,
        location: tuple[Place, str],
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._run, self._machine, self._location = run, machine, location
        self._function, self._args = function, args

    def begin(self) -> bool:
        """Be dropped: another value is on offer."""
        return False

    def look(self, machine: Machine) -> bool:
        """Put the view back, if it is the machine's that goes on."""
        if machine is not self._machine:
            return True
        value = machine.in_its_state(self._function, *self._args)
        self._run.answer(machine, (WRITE, value, *self._location))
        return False


class Writes:
    """The writes of a run's machines.

    Attributes:
        suspects: writes that changed a value's structure, shape, dtype or device.
        shares: True if an invoke may write a value without rows, for all invokes, and is warned;
            `nnsight_dsl.compat` sets it.
        watched: tensors that a block may still hold, and must not edit in place.
    """

    suspects: Sequence[Suspect] = ()
    shares = False
    watched: Sequence[_Watched | WriteBack] = ()

    def put(
        self,
        machine: Machine,
        offer: Offer,
        location: tuple[Place, str],
        seen: Any,
        new: Any,
        cut: OfferCut | None,
    ) -> None:
        """Replace the value that a machine sees."""
        port = location[1]
        if cut is None:
            difference = misfit(seen, new) if new is not seen else None
            if difference is not None:
                self._suspect(machine, name_of(*location), difference)
        elif new is not seen or not isinstance(new, torch.Tensor):
            whole = port_value(offer.value, port)
            shared: list[Any] | None = [] if self.shares else None
            new = widen(whole, new, cut, shared)
            if shared:
                _warn_of_shared(machine, name_of(*location))
            pairs = zip(pytree.tree_leaves(whole), pytree.tree_leaves(new), strict=True)
            for old, leaf in pairs:
                if old is not leaf and isinstance(old, torch.Tensor):
                    self._watch_replaced(machine, old, name_of(*location))
        else:
            return
        offer.value = with_port_value(offer.value, port, new)
        # edits of containers narrowed from the previous value are no longer taken
        offer.handed = ()

    def _suspect(self, machine: Machine, location: str, difference: str) -> None:
        program = machine.program
        suspect = Suspect(program.filename, machine.line, program.name, location, difference)
        self.suspects = [*self.suspects, suspect]

    def _watch_replaced(self, machine: Machine, tensor: torch.Tensor, location: str) -> None:
        if not tensor.is_inference():
            self.watched = [*self.watched, _Replaced(tensor, location, machine.order)]

    def watch_whole(self, machine: Machine, tensor: torch.Tensor, location: str) -> None:
        """Watch a tensor without rows for edits by a machine, until the machine is parked."""
        if not tensor.is_inference():
            kind = _Shared if self.shares else _Whole
            self.watched = [*self.watched, kind(tensor, location, machine.order)]

    def put_back(self, entry: WriteBack) -> None:
        """Put a view back once its machine goes on."""
        self.watched = [*self.watched, entry]

    def begin(self) -> None:
        """Disregard edits that the model has made while no block ran."""
        self.watched = [entry for entry in self.watched if entry.begin()]

    def check(self, machine: Machine) -> None:
        """Check for edits in place by the machine that has just run.

        Raises:
            StaleEditError: an edit would have no effect.
            WriteError: an edit reaches rows of other invokes.
        """
        known, self.watched = self.watched, ()
        kept = [entry for entry in known if entry.look(machine)]
        # a view that is put back is a write
        self.watched = [*kept, *self.watched]
