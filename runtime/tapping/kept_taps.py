"""Fixtures: taps that are kept between the runs of a program.

Most runs of a program tap the same modules as the run before. Their taps are made once, and reset
for each run: making a tap, with its class and the taps above it, costs 0.7 µs, while putting and
removing a kept one costs 0.25. Runs of one model take turns, so no two of them need a tap at once;
if a fixture is in use all the same, the run makes new taps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnsight_dsl.runtime.locations import Place

from .offering import Offering
from .tapped_class import remove_tap, set_class, tapped_class, taps_now
from .taps import NOBODY, Tap, is_container
from .torch_fast_path import COMPILED, is_compiled_around, is_fast_layer


@dataclass(frozen=True, slots=True)
class Needs:
    """The modules that a machine can ask for, as far as they are known before it runs.

    Attributes:
        fixtures: modules whose taps are kept between runs.
        expected: further places and ports.
        is_closed: True if the machine can ask for no others, so that no others need taps.
        streams: True if it names the streamer of a generation.
    """

    fixtures: Fixtures | None
    expected: Sequence[tuple[Place, str]]
    is_closed: bool
    streams: bool = False


_Fixture = tuple[Tap, nn.Module, type, type, Sequence[Tap]]
"""A tap, its module, that module's own class and its tapped class, and the taps above."""


class Fixtures:
    """Taps on some modules, for one run after the other.

    Attributes:
        places: their places.
        taps: the taps by identity of their modules.
        by_place: the taps by identity of their places.
        user: the driver that uses them, from before the first is put until all are removed; only
            `put` sets it, and only if it is None.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        """Look up the modules at some places, and those above them.

        The root gets no tap here, and neither do places without a module.
        """
        self._is_root_tapped = False
        self._of_root: dict[str, Any] = {}
        self._all: list[_Fixture] = []
        self.taps: dict[int, Tap] = {}
        self.user: Offering | None = None
        for place in places:
            self._add(place)
        self.places = [tap.place for tap in self.taps.values()]
        self.by_place = {id(tap.place): tap for tap in self.taps.values()}

    def __len__(self) -> int:
        return len(self._all)

    def _add(self, place: Place) -> Tap | None:
        module, parent = place._module, place._parent
        if not isinstance(module, nn.Module) or parent is None:
            return None
        tap = self.taps.get(id(module))
        if tap is None:
            while parent._parent is not None and is_container(parent._module):
                parent = parent._parent
            above: Sequence[Tap] = ()
            if parent._parent is None:
                root = parent._module
                self._is_root_tapped = is_fast_layer(root) or is_compiled_around(root)
                self._of_root = root.__dict__
            else:
                over = self._add(parent)
                if over is None:
                    return None
                above = (over, *over.above)
            tap = self.taps[id(module)] = object.__new__(Tap)
            _set_up(tap, place, module, above)
            cls = type(module)
            self._all.append((tap, module, cls, tapped_class(module, cls), above))
        return tap

    def has(self, tap: Tap) -> bool:
        """Return whether a tap is one of these."""
        return self.by_place.get(id(tap.place)) is tap

    def put(self, driver: Offering) -> bool:
        """Let the modules offer their values to a driver, which has no other taps yet.

        Returns:
            Whether the taps were put: they are not if they are in use, if a module's class has
            changed, as that of a lazy module does at its first call, or if the root has to be
            tapped too.
        """
        if self.user is not None or not self._all:
            return False
        if self._is_root_tapped or COMPILED in self._of_root:
            return False
        self.user = driver
        taps_now.update(self.taps)
        for number, (tap, module, cls, tapped, _) in enumerate(self._all):
            if type(module) is not cls:
                self._take_off(number)
                return False
            tap.driver = driver
            tap.begun = tap.done = 0
            tap.is_entered = False
            tap.begun_step = tap.done_step = -1
            set_class(module, tapped)
        return True

    def _take_off(self, count: int) -> None:
        """Restore the modules, of which only the first `count` have been changed."""
        for tap, module, cls, _, _ in self._all[:count]:
            set_class(module, cls)
            tap.driver = NOBODY
        for key in self.taps:
            taps_now.pop(key, None)
        self.user = None

    def remove(self) -> None:
        """Restore all modules.

        Those that an interrupt kept from being tapped, or that an interrupted call has already
        restored, are left alone.
        """
        for number, (tap, module, cls, tapped, above) in enumerate(self._all):
            if type(module) is tapped and tap.is_common and not tap.waiting:
                set_class(module, cls)
                taps_now.pop(id(module), None)
                # The driver refers to the blocks' values. Another thread that was about to call
                # the module may still look at the tap: it finds that it is not its own.
                tap.driver = NOBODY
                tap.above = above
            else:
                # more has to be reset, in the same tap: drivers of later runs refer to it
                remove_tap(module)
                if tap.inside is not None:
                    tap.inside.finish()
                # in this order: an interrupt in between leaves a tap that still works
                _set_up(tap, self.places[number], module, above)
                for name in tap.__dict__.keys() - _SET_UP:
                    del tap.__dict__[name]
                now = type(module)
                self._all[number] = tap, module, now, tapped_class(module, now), above
        self.user = None


_SET_UP = frozenset(
    {"above", "can_refuse", "driver", "index", "is_common", "module", "place", "waiting"}
)
"""Attributes of a kept tap between runs."""


def _set_up(tap: Tap, place: Place, module: nn.Module, above: Sequence[Tap]) -> None:
    """Reset a tap to its state between runs; `put` sets its driver."""
    tap.place, tap.module, tap.above, tap.driver = place, module, above, NOBODY
    # read at each visit, so set on the instance (see `Driver.__init__`)
    tap.is_common, tap.can_refuse, tap.index, tap.waiting = True, False, None, []
