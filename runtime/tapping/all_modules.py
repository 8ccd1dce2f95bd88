"""All modules of a model, looked up once for the runs that tap every one of them.

A cache of all modules, or a block that can ask for anything, taps the whole model. Walking its
places, tapping each module and removing the taps takes 5 µs per module. The tree of modules is
nearly always the same as in the run before; so it is cached, with the facts that it depends on.
Checking those and tapping all modules at once takes 1 µs per module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nnsight_dsl.runtime.locations import Place, children_of

from .kept_taps import Fixtures


class AllModules:
    """The modules of one model.

    Attributes:
        fixtures: the modules that can be tapped at once.
        others: places of the other modules, the root first.
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
        # the places keep the modules alive, so that their identities are not reused
        self._parents = [(one, [*one, *map(id, one.values())]) for one in below if one]
        self._leaves = [one for one in below if not one]

    def holds(self, root: Place) -> bool:
        """Return whether the same modules are still at the same places."""
        if self._module is not root._module or any(self._leaves):
            return False
        for modules, known in self._parents:
            if [*modules, *map(id, modules.values())] != known:
                return False
        for place, module in self._places:
            if place._module is not module:
                # the place was used while another module was there for a while
                place._refresh()
        return True


def places_of(root: Place) -> Iterator[Place]:
    """Iterate over the modules of a model, the root first."""
    todo = [root]
    while todo:
        place = todo.pop()
        yield place
        # in order: a module at several places goes by the first
        todo.extend(reversed([*place._places_below()]))


def all_modules_of(root: Place) -> AllModules:
    """Return the modules of a model, from the cache if that still holds."""
    known: Any = root.__dict__.get("_all_modules")
    if known is None or not known.holds(root):
        known = root.__dict__["_all_modules"] = AllModules(root)
    found: AllModules = known
    return found
