"""The taps of one run: which there are, and when each is put up and taken down.

Places that the machines can ask for are tapped before the model is called, so that a value that
passes too early is noticed. A place that nobody could know of gets its tap when it is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from nnsight_dsl.runtime.locations import Place, ancestors, key_of
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.all_modules import AllModules, all_modules_of, places_of
from nnsight_dsl.runtime.tapping.kept_taps import Fixtures, Needs
from nnsight_dsl.runtime.tapping.offering import Offering
from nnsight_dsl.runtime.tapping.operations import OperationPlace, OperationTap
from nnsight_dsl.runtime.tapping.served import ServedPlace, ServedTap
from nnsight_dsl.runtime.tapping.sharded import ShardedTap, Split, may_be_part
from nnsight_dsl.runtime.tapping.taps import Tap, is_container
from nnsight_dsl.runtime.tapping.torch_fast_path import passes_over_parts
from nnsight_dsl.transforms.requests import OUTPUT

from .inlining import Inlined


class TappingRun(Inlined, Offering):
    """The part of a driver that puts taps up and takes them down.

    Attributes:
        is_tapped_ahead: True if there are places to tap that no machine has named.
        is_tapping_ahead: True while taps are put, before the model is called.
        has_beside: True if modules beside the one whose calls are steps count their own visits.
    """

    has_beside = False
    splits: Mapping[int, Split] = MappingProxyType({})
    """How values are split over processes, by the id of the module; empty but for such models."""

    is_tapped_ahead = False
    is_tapping_ahead = False
    _put: Fixtures | None = None
    _expects_anything = False
    _all_tapped: AllModules | None = None
    _expected: list[tuple[Place, str]]
    _fixtures: list[Fixtures]

    def tap_for(self, place: Place) -> Tap:
        """Return the tap at a place; put one there, and at the places above it, if need be."""
        return self._taps.get(key_of(place)) or self._put_tap(place)

    def tap_at(self, place: Place) -> Tap | None:
        """Return the tap at a place, None if there is none."""
        return self._taps.get(key_of(place))

    def _put_tap(self, place: Place) -> Tap:
        if not self.is_tapping_ahead:
            # expected places have been refreshed already
            place._refresh()
        # the run may be of a part of a model, and then nothing above it is called
        is_top = self._is_top(place)
        parent = None if is_top else place._parent
        # a container is never called, so no value passes there
        while parent is not None and is_container(parent._module):
            parent = parent._parent
        above = None
        if parent is not None:
            above = self._taps.get(id(parent._module))
            # In a run with one forward, the root's return is the end, which needs no tap.
            is_needed = (
                self.is_stepped or not self._is_top(parent) or passes_over_parts(parent._module)
            )
            if above is None and is_needed:
                above = self._put_tap(parent)
        module = place._module
        key = id(place if module is None else module)
        tap = self._taps.get(key)
        if tap is None:
            tap = self._new_tap(place)
            if above is not None:
                tap.above = (above, *above.above)
            elif is_top:
                for below in self._taps.values():
                    below.above = (*below.above, tap)
            self._taps[key] = tap
            if module is not None and not self.has_ended:
                tap.install()
        return tap

    def _new_tap(self, place: Place) -> Tap:
        if isinstance(place, ServedPlace):
            return ServedTap(place, self)
        stepping = self.stepping
        if isinstance(place, OperationPlace):
            tap: Tap = OperationTap(place, self)
            if self.splits and self._is_on_parts(place):
                tap.missing = may_be_part(place)
        else:
            is_stepping = stepping is not None and place._module is stepping._module
            split = self.splits.get(id(place._module)) if self.splits else None
            if split is None:
                tap = Tap(place, self, is_stepping=is_stepping)
            else:
                tap = ShardedTap(place, self, split, is_stepping=is_stepping)
        if self.has_beside and stepping is not None:
            tap.is_beside = not _is_in(place, stepping)
        return tap

    def _is_on_parts(self, place: Place) -> bool:
        """Return whether an operation is in a forward that computes with parts."""
        above = place._parent
        while above is not None:
            split = self.splits.get(id(above._module))
            if split is not None:
                return split.inside
            above = above._parent if isinstance(above, OperationPlace) else None
        return False

    def expect(self, places: Iterable[tuple[Place, str]]) -> None:
        """Expect a machine to ask for some places and ports."""
        self._expected.extend(places)

    def add(self, machine: Machine) -> None:
        """Add a machine, and expect the places that it can ask for."""
        machine.order = len(self.machines)
        self.machines.append(machine)
        needs = machine.needs
        if not isinstance(needs, Needs):
            self._expects_anything = True
            return
        if needs.fixtures is not None and needs.fixtures not in self._fixtures:
            self._fixtures.append(needs.fixtures)
        if needs.expected:
            self._expected.extend(needs.expected)
        if not needs.is_closed:
            self._expects_anything = True

    def expect_anything(self) -> None:
        """Expect a machine to ask for any module."""
        self._expects_anything = True

    def places(self) -> Iterator[Place]:
        """Iterate over the modules of the model."""
        return places_of(self.root)

    def watch_for(self, places: Sequence[Place], machine: Machine) -> None:
        """Put the taps that watchers need for the places that a machine has asked for.

        Args:
            places: the watched places; the root alone means all modules.
            machine: the machine that asks.
        """
        everything = any(place is self.root for place in places) and len(places) == 1
        if machine.is_builder:
            # the run has not begun, and taps are there during the run only
            if everything:
                self.expect_anything()
            self.expect((place, OUTPUT) for place in places)
        elif everything:
            self._tap_all()
        else:
            for place in places:
                self.tap_for(place)

    def _tap_ahead(self) -> None:
        """Put taps where machines can ask, so that a value that passes earlier is noticed."""
        self.is_tapping_ahead = True
        is_usual = self.stepping is None and type(self)._new_tap is TappingRun._new_tap
        # kept taps know nothing of a split
        is_usual = is_usual and not self.splits
        if self.stepping is not None:
            # each of them is below the place whose calls are steps
            self.tap_for(self.stepping)
        fixtures = self._fixtures
        if is_usual and self._expects_anything:
            # all modules come first: those that a program names are among them
            self._all_tapped = all_modules_of(self.root)
            fixtures = [self._all_tapped.fixtures, *fixtures]
        for some in fixtures:
            if is_usual and not self._taps and self._has_put(some):
                self._taps.update(some.taps)
            else:
                self._expected.extend((place, OUTPUT) for place in some.places)
        for place, port in self._expected:
            if place._root is self.root or self._is_of_model(place):
                tap = self._taps.get(id(place._module)) or self._put_tap(place)
                if type(tap) is not Tap:
                    tap.expect(port)
        if self._all_tapped is not None:
            for place in self._all_tapped.others:
                self.tap_for(place)
        elif self._expects_anything:
            self._tap_all()
        for one in self.root._own_values:
            if one.place_in(self.root) is not self.root:
                self.tap_for(one.place_in(self.root))
        self.is_tapping_ahead = False

    def _has_put(self, fixtures: Fixtures) -> bool:
        # first, so that an interrupt in the midst of it finds what has been put
        before, self._put = self._put, fixtures
        if fixtures.put(self):
            return True
        self._put = before
        return False

    def _tap_all(self) -> None:
        known = self._all_tapped
        if known is None or known is not all_modules_of(self.root):
            for place in self.places():
                self.tap_for(place)

    def _remove_taps(self) -> None:
        put = self._put
        if put is None or len(self._taps) > len(put):
            for tap in self._taps.values():
                if put is None or not put.has(tap):
                    tap.remove()
        if put is not None and put.user is self:
            put.remove()

    def _is_top(self, place: Place) -> bool:
        """Return whether a place is that of the module that runs, by whichever wrapper."""
        return place is self.root or place._module is self.root._module

    def _is_of_model(self, place: Place) -> bool:
        """Return whether a place belongs to the model that runs, by whichever wrapper.

        The run may be of a part of the wrapper's model, as in `model.lm_head.trace(...)`.
        """
        return place._root is None or any(self._is_top(one) for one in ancestors(place))


def _is_in(place: Place, outer: Place) -> bool:
    """Return whether a place is another one, or is below it."""
    above: Place | None = place
    while above is not None:
        if above._module is outer._module:
            return True
        above = above._parent
    return False
