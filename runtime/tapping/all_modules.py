"""All modules of a model, looked up once for the runs that tap every one of them.

A cache of all modules, or a block that can ask for anything, taps the whole model. To walk it by
its places and tap each takes 5 µs for each module, taps taken off again. Which modules stand where
is nearly always what it was in the run before; so that is kept, with what it rests on. To compare
that and tap all in one go takes 1 µs for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nnsight_dsl.runtime.locations import Place, children_of

from .kept_taps import Fixtures


class AllModules:
    """The modules of one model.

    Attributes:
        fixtures: those that can be tapped in one go.
        others: places of those that cannot, the root first.
    """

    __slots__ = ("_leaves", "_module", "_parents", "_places", "fixtures", "others")

    def __init__(self, root: Place) -> None:
        places = list(places_of(root))
        self._module = root._module
        self.fixtures = Fixtures(places)
        fixed = {id(one._module) for one in self.fixtures.places}
        self.others = [one for one in places if id(one._module) not in fixed]
        self._places = [(one, one._module) for one in places]
        below = [children_of(one._module) for one in places]
        # the modules stay alive with the places, so that no other one takes an identity
        self._parents = [(one, [*one, *map(id, one.values())]) for one in below if one]
        self._leaves = [one for one in below if not one]

    def holds(self, root: Place) -> bool:
        """Tell whether the same modules still stand at the same places."""
        if self._module is not root._module or any(self._leaves):
            return False
        for modules, known in self._parents:
            if [*modules, *map(id, modules.values())] != known:
                return False
        for place, module in self._places:
            if place._module is not module:
                # another module stood there for a while, and the place was looked at then
                place._refresh()
        return True


def places_of(root: Place) -> Iterator[Place]:
    """Iterate over the modules of a model, the root first."""
    todo = [root]
    while todo:
        place = todo.pop()
        yield place
        # in order: a module that stands at several places goes by the first
        todo.extend(reversed([*place._places_below()]))


def all_modules_of(root: Place) -> AllModules:
    """Return the modules of a model, as they were found before if they still stand so."""
    known: Any = root.__dict__.get("_all_modules")
    if known is None or not known.holds(root):
        known = root.__dict__["_all_modules"] = AllModules(root)
    found: AllModules = known
    return found
