"""Taps on operations inside a module's forward.

While a module is called, its `forward` is replaced by a copy whose code reports some operations
(see `nnsight_dsl.transforms.bytecode.taps`); after the call the original is back. An *inside* is a
run's state of one function: which of its operations are tapped, and which were done. The inside of
an operation is that of the function it calls, found each time it is called.

An operation must be tapped before its function is called. Operations named in a block's text are
known beforehand. Asking for one in another way taps all operations of that function from its next
call on; asking while the function is already running is an error.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from threading import get_ident
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from nnsight_dsl.runtime.errors import InternalError, NoSourceError, OutOfOrderError, PathError
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.ambient import top_saved_hooks
from nnsight_dsl.runtime.machines.machine import Machine, advanced
from nnsight_dsl.runtime.record import item_before, restore_item
from nnsight_dsl.runtime.values.offers import skipped_output
from nnsight_dsl.transforms.bytecode import taps as bytecode_taps
from nnsight_dsl.transforms.bytecode.functions import innermost, rebuilt, with_code
from nnsight_dsl.transforms.bytecode.operations import Operation, operations_of
from nnsight_dsl.transforms.bytecode.taps import tapped_code
from nnsight_dsl.transforms.requests import INPUTS, SKIP, Phase

from .checkpoints import is_computed_again, offered_unchanged
from .offering import Offering
from .taps import NOBODY, Tap

_WRAPPED_BY_ACCELERATE = "_old_forward"
"""Attribute in which accelerate keeps the forward that it has wrapped."""


class Spot:
    """One operation of one module, however many envoys lead to it.

    Attributes:
        function: the Python function that it was last seen to call, None before it was called.
        ran: for each operation of that function, whether it was done when last looked at.
    """

    __slots__ = ("function", "ran")

    def __init__(self) -> None:
        self.function: FunctionType | None = None
        self.ran: dict[str, bool] = {}


_spots: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Spot]] = WeakKeyDictionary()


def spot_of(module: nn.Module, chain: tuple[str, ...]) -> Spot:
    """Return the spot of an operation, by the names of the operations that lead to it."""
    known = _spots.setdefault(module, {})
    return known.setdefault(chain, Spot())


def forward_of(module: nn.Module) -> Any:
    """Return the forward of a module, without accelerate's wrapper."""
    return module.__dict__.get(_WRAPPED_BY_ACCELERATE) or module.forward


class OperationPlace(Place):
    """The place of an operation; the module or the operation around it is its parent.

    Attributes:
        _name: name of the operation in its function.
        _owner: module whose forward it is in, directly or through calls.
        _chain: names of the operations that lead to it from that forward, its own last.
    """

    _name: str
    _owner: nn.Module
    _chain: tuple[str, ...]

    def _place(self, parent: Place, name: str) -> None:
        above = parent._chain if isinstance(parent, OperationPlace) else ()
        owner = parent._owner if isinstance(parent, OperationPlace) else parent._module
        fields = {
            "_name": name,
            "_owner": owner,
            "_chain": (*above, name),
            "_module": spot_of(owner, (*above, name)),
            "_parent": parent,
            "_root": parent._root,
            "_path": f"{parent._path}.source.{name}" if parent._path else f"source.{name}",
        }
        self.__dict__.update(fields)

    def _beside(self, name: str) -> OperationPlace:
        """Return the place of another operation of the same function."""
        place = type(self).__new__(type(self))
        if self._parent is None:
            raise InternalError("an operation stands in something")
        place._place(self._parent, name)
        return place

    def _absence(self) -> str:
        """Explain why a run did not do the operation."""
        operation = self._operation()
        function = function_inside(self._parent) if self._parent is not None else None
        at = ""
        if operation is not None and function is not None:
            file = function.__code__.co_filename.replace("\\", "/").rpartition("/")[2]
            at = f" at line {operation.line} of {file}"
        return (
            f"the operation{at} was not done: it stands in a branch of its function that this "
            "input does not take (print the .source to see the others)"
        )

    def _operation(self) -> Operation | None:
        function = function_inside(self._parent) if self._parent is not None else None
        return None if function is None else operations_in(self, function).get(self._name)


def operations_in(place: Place, function: FunctionType) -> Mapping[str, Operation]:
    """Return the operations of a function by the names that the model of a place has for them."""
    root = place._root
    names = None if root is None else root._names_operations
    return (operations_of if names is None else names)(function.__code__)


def function_inside(place: Place) -> FunctionType | None:
    """Return the function whose operations are inside a place, None while it is unknown."""
    if isinstance(place, OperationPlace):
        function: FunctionType | None = place._module.function
        return function
    return _heart(forward_of(place._module))


_originals: WeakKeyDictionary[FunctionType, FunctionType] = WeakKeyDictionary()
"""The original of each tapped copy; the copy replaces it while its module is called."""


def _heart(function: Any) -> FunctionType | None:
    """Return the function behind wrappers and taps, None if there is none."""
    heart = innermost(function)
    return heart if heart is None else _originals.get(heart, heart)


def no_such_operation(where: str, name: str, known: Iterable[str]) -> PathError:
    """Return the error for an unknown operation."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return PathError(
        f"{where} has no operation {name!r}; {meant}it has {', '.join(map(repr, names))} (print "
        "its .source to see them beside the text)"
    )


class Inside:
    """A run's state of one function and its operations."""

    def __init__(self, place: Place, driver: Offering) -> None:
        self._place = place
        self._driver = driver
        self._taps: dict[str, OperationTap] = {}
        # the first run taps all operations, to learn which are done
        self._has_all = not self._spot().ran
        self._running: list[frozenset[str]] = []
        self._made: tuple[Any, frozenset[str], frozenset[str], Any] | None = None

    def add(self, tap: OperationTap) -> None:
        """Tap one more operation."""
        self._taps[tap.place._name] = tap
        if not self._driver.is_tapping_ahead:
            self._has_all = True

    def covers(self, name: str) -> bool:
        """Return whether an operation is tapped in the current call of the function."""
        return bool(self._running) and name in self._running[-1]

    def is_awaited(self) -> bool:
        """Return whether a machine waits for one of the operations."""
        return any(tap.is_awaited() for tap in self._taps.values())

    def called(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the call of a module, so that its forward is tapped while it lasts."""

        def with_taps(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            attributes = module.__dict__
            name = _WRAPPED_BY_ACCELERATE if _WRAPPED_BY_ACCELERATE in attributes else "forward"
            record = self._driver.record
            depth = len(record)
            put: list[Any] = []
            record.append((_put_back, attributes, name, item_before(attributes, name), put))
            try:
                put.append(self.tapped(getattr(module, name)))
                attributes[name] = put[0]
                try:
                    return call(module, *args, **kwargs)
                finally:
                    self.left()
            finally:
                record.undo(depth)

        return with_taps

    def entered(self, function: Any) -> Any:
        """Return the function to call for an operation, with the operations inside it tapped."""
        spot: Spot = self._place._module
        heart = _heart(function)
        if heart is None:
            self._running.append(frozenset())
            for tap in self._taps.values():
                tap.refuse(_no_inside(self._place, function, self._driver))
            return function
        spot.function = heart
        return self.tapped(function)

    def finish(self) -> None:
        """Remember which operations were done, and drop their taps.

        The taps refer to those above them, and so to this object: a cycle that would keep the
        run's values alive.
        """
        spot = self._spot()
        if any(tap.begun for tap in self._taps.values()):
            spot.ran.update((name, tap.begun > 0) for name, tap in self._taps.items())
        self._made = None
        self._taps = {}

    def _spot(self) -> Spot:
        place = self._place
        if isinstance(place, OperationPlace):
            found: Spot = place._module
            return found
        return spot_of(place._module, ())

    def left(self) -> None:
        """Note that the function has returned."""
        self._running.pop()

    def tapped(self, function: Any) -> Any:
        """Return a copy of a function with the operations tapped, for a call that begins."""
        heart = _heart(function)
        if heart is None:
            raise InternalError(f"{function!r} has no operations inside")
        operations = operations_in(self._place, heart)
        if self._has_all:
            some = next(iter(self._taps.values())).place
            for name in operations.keys() - self._taps.keys():
                self._driver.tap_for(some._beside(name))
        taps: dict[str, OperationTap] = {}
        running = set()
        for name, tap in self._taps.items():
            if name in operations:
                taps[operations[name].name] = tap
                running.add(name)
            else:
                where = f"{self._place._path} ({heart.__qualname__})"
                tap.refuse(no_such_operation(where, name, operations))
        self._running.append(frozenset(running))
        around = frozenset(name for name, tap in taps.items() if tap.is_around)
        made = self._made
        if made is not None and made[:3] == (function, frozenset(taps), around):
            return made[3]
        copy = rebuilt(function, lambda inner: tapped_copy(inner, taps, around))
        self._made = (function, frozenset(taps), around, copy)
        return copy


def _put_back(attributes: dict[str, Any], name: str, before: Any, put: list[Any]) -> None:
    """Restore a module's forward, unless the call has replaced it, as lazy modules do."""
    if put and attributes.get(name) is put[0]:
        restore_item(attributes, name, before)


def tapped_copy(
    function: FunctionType, taps: Mapping[str, bytecode_taps.OperationTap], around: frozenset[str]
) -> FunctionType:
    """Return a copy of a function that reports some operations to their taps.

    Args:
        function: the function, or such a copy of it.
        taps: the tap of each operation, by name.
        around: names of the operations that are also reported before they are done.
    """
    original = _originals.get(function, function)
    copy = with_code(original, tapped_code(original.__code__, taps, around))
    _originals[copy] = original
    return copy


def _no_inside(place: Place, function: Any, driver: Offering) -> NoSourceError:
    if isinstance(function, nn.Module):
        path = next(
            (
                found._path
                for found in driver.places()
                if found._module is function and not isinstance(found, OperationPlace)
            ),
            None,
        )
        spelled = f"model.{path}.source" if path else "the .source of that module"
        return NoSourceError(
            f"{place._path} calls the module {type(function).__name__}, which has its own source; "
            f"write {spelled}"
        )
    name = getattr(function, "__qualname__", None) or repr(function)
    kind = "a C function" if isinstance(function, BuiltinFunctionType) else "not a Python function"
    return NoSourceError(
        f"{place._path} calls {name}, which is {kind} and has no operations inside; read its "
        ".input and .output"
    )


class OperationTap(Tap):
    """The tap of one operation.

    Attributes:
        is_around: True if it is also reported before it is done: its arguments, its inside or a
            skip were asked for, or it was tapped during the run.
        missing: the error for requests, if its function turns out not to have it.
    """

    place: OperationPlace
    inside: Inside | None = None
    can_refuse = True

    def __init__(self, place: OperationPlace, driver: Offering) -> None:
        super().__init__(place, driver, is_stepping=False)
        self.is_around = not driver.is_tapping_ahead
        self._open: list[tuple[int | None, Any, bool]] = []

    def install(self) -> None:
        """Have the function around it tapped at its next call."""
        parent = self.place._parent
        if parent is None:
            raise InternalError("an operation stands in something")
        above = self.driver.tap_for(parent)
        if above.inside is None:
            above.inside = Inside(parent, self.driver)
            above.is_common = False
            above.expect_inside()
        above.inside.add(self)

    def remove(self) -> None:
        """Drop the run; a function is tapped only while it runs, so it needs no restoring.

        A copy that the model has stored, as a decorator does, has this tap in its code. The tap
        passes values through from now on, and holds nothing of the run.
        """
        if self.inside is not None:
            self.inside.finish()
            self.inside = None
        self.above, self.driver, self._open = (), NOBODY, []

    def expect(self, port: str) -> None:
        """Get ready for requests of a port."""
        if port in ("input", "inputs", SKIP):
            self.is_around = True

    def expect_inside(self) -> None:
        """Get ready for requests inside the function that it calls."""
        self.is_around = True

    def uncovered(self, machine: Machine) -> Exception | None:
        """Return the error for a request while the function runs without this tap, else None."""
        parent = self.place._parent
        if parent is None:
            raise InternalError("an operation stands in something")
        above = self.driver.tap_for(parent)
        if (
            above.index != machine.step
            or above.inside is None
            or above.inside.covers(self.place._name)
            or self.driver.is_offering_inputs(above)
        ):
            return None
        return OutOfOrderError(
            f"{self.place._path} was asked for while the function that it is in was already "
            "running, and was not expected there; spell the operation out in the block's text "
            "from a name that stands before the block, or ask before the function is called"
        )

    def refuse(self, error: Exception) -> None:
        """Fail the waiting machines and later requests: the operation does not exist."""
        self.missing = error
        self.driver.fail_waiting(self, error)

    def before(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any]:
        """Offer the arguments; return the call to make in place of the operation."""
        driver = self.driver
        if not self._is_seen():
            return functools.partial(function, *args, **kwargs)
        outer, self.index = self.index, self.begin()
        spot: Spot = self.place._module
        if spot.function is None:
            # before the arguments are offered: a machine may print the operations inside
            spot.function = _heart(function)
        if self.waiting and self.wants_inputs:
            args, kwargs = self._offer(INPUTS, (args, kwargs))
        is_entered = self.inside is not None and not self.skips
        self._open.append((outer, (args, kwargs) if driver.watchers else None, is_entered))
        if self.skips:
            value = skipped_output(self, _called, function, args, kwargs, driver.factor)
            return functools.partial(_given, value)
        if self.inside is not None:
            function = self.inside.entered(function)
        return functools.partial(function, *args, **kwargs)

    def after(self, value: Any) -> Any:
        """Offer the result; return the value to go on with."""
        if not self._is_seen():
            return value
        driver = self.driver
        if not (self.waiting or self.is_around or driver.is_stepped or driver.visit_waiters):
            # no machine waits: only count, at half the price
            self.begun_step = self.done_step = self.begun
            self.begun += 1
            self.done += 1
            if driver.watchers:
                driver.watch(self, (value,), {}, value)
            return value
        inputs: Any = ((value,), {})
        if self.is_around and self._open:
            outer, inputs, is_entered = self._open.pop()
            if is_entered and self.inside is not None:
                self.inside.left()
        else:
            outer, self.index = self.index, self.begin()
        try:
            value = self._offered(value)
            if self.driver.watchers and inputs is not None:
                self.driver.watch(self, inputs[0], inputs[1], value)
            return value
        finally:
            self.index = outer

    def _offer(self, phase: Phase, value: Any) -> Any:
        offer = functools.partial(self.driver.offer, self, phase)
        if top_saved_hooks(True) is None:
            return offer(value)
        driver = self.driver
        outer, driver.is_read_only = driver.is_read_only, True
        try:
            return offered_unchanged(name_of(self.place, phase), offer, value)
        finally:
            driver.is_read_only = outer

    def _is_seen(self) -> bool:
        driver = self.driver
        return (
            driver.thread == get_ident()
            and advanced() is None
            and not driver.is_in_backward
            and (not driver.has_grad or top_saved_hooks(True) is None or not is_computed_again())
        )


def _called(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _given(value: Any) -> Any:
    return value
