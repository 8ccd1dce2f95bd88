"""Fixtures: the modules that the runs of a program tap, looked up once for all of them.

Most runs of a program tap the same modules as the run before. Their taps are made once, and set
back for each run: making a tap anew, looking up its class and what is above it costs 0.7 µs, and
to put it there and take it off again without that 0.25. Runs of one model take turns, so no two
of them need a tap at once; should a fixture be in use all the same, that run makes taps of its own.
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
        expected: places and ports beside those.
        is_closed: whether the machine can ask for no others.
    """

    fixtures: Fixtures | None
    expected: Sequence[tuple[Place, str]]
    is_closed: bool


_Fixture = tuple[Tap, nn.Module, type, type, Sequence[Tap]]
"""A tap, its module, the class of that, the class for the length of a run, and the taps above."""


class Fixtures:
    """Taps on some modules, for one run after the other.

    Attributes:
        places: their places.
        taps: the taps by identity of their modules.
        by_place: the taps by identity of their places.
        user: the driver that they are put for, from before the first is put until all are gone.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        """Look up the modules at some places, and those above them.

        The root gets no tap here, nor what is no module.
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
        """Tell whether a tap is one of theirs."""
        return self.by_place.get(id(tap.place)) is tap

    def put(self, driver: Offering) -> bool:
        """Let the modules offer their values to a driver, which has no other taps yet.

        Returns:
            Whether that has been done: it is not where they are in use, where a module is of
            another class now, as lazy modules are from their first call on, or where the root has
            to be tapped, too.
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
        """Leave the modules as they were, of which only the first few have been changed."""
        for tap, module, cls, _, _ in self._all[:count]:
            set_class(module, cls)
            tap.driver = NOBODY
        for key in self.taps:
            taps_now.pop(key, None)
        self.user = None

    def remove(self) -> None:
        """Leave the modules as they were before the run.

        Those that are as they were, since an interrupt kept them from being tapped or came while
        this was done, are left alone.
        """
        for number, (tap, module, cls, tapped, above) in enumerate(self._all):
            if type(module) is tapped and tap.is_common and not tap.waiting:
                set_class(module, cls)
                taps_now.pop(id(module), None)
                # The driver names what the blocks hold. Another thread that was about to call the
                # module may still look at the tap: it finds none of its own.
                tap.driver = NOBODY
                tap.above = above
            else:
                # there is more to set back, in the same tap: drivers of later runs know it
                remove_tap(module)
                if tap.inside is not None:
                    tap.inside.finish()
                # in this order: an interrupt in between leaves a tap that can still be asked
                _set_up(tap, self.places[number], module, above)
                for name in tap.__dict__.keys() - _SET_UP:
                    del tap.__dict__[name]
                now = type(module)
                self._all[number] = tap, module, now, tapped_class(module, now), above
        self.user = None


_SET_UP = frozenset(
    {"above", "can_refuse", "driver", "index", "is_common", "module", "place", "waiting"}
)
"""What a tap has before and after each run."""


def _set_up(tap: Tap, place: Place, module: nn.Module, above: Sequence[Tap]) -> None:
    """Give a tap what it has before and after each run; a driver it gets when it is put there."""
    tap.place, tap.module, tap.above, tap.driver = place, module, above, NOBODY
    # each visit asks for these (see `Driver.__init__`)
    tap.is_common, tap.can_refuse, tap.index, tap.waiting = True, False, None, []
