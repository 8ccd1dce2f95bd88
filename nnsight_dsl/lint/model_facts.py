"""What is known of a model: its paths, the order in which its modules run, what they return.

All of it is plain data, so that it can be kept as JSON between two calls of the linter, and read
without importing torch. `recording` makes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .accesses import Path, Round

PORTS = ("output", "input", "inputs")
ENVOY_NAMES = frozenset("all get iter next skip source".split())


@dataclass(frozen=True, slots=True)
class Module:
    """One module of a model.

    Attributes:
        children: names of its modules, in order.
        attributes: names of what else it has.
        output: `"tensor"`, `"tuple"`, another type's name, or `""` if it was not called.
        was_tuple: whether it is a layer that returned a tuple before transformers 5.
        visits: when its calls began and ended, counted over all modules.
        last_use: when its first output was last used, None if that is the model's own output.
        operations: names of the operations in its forward, empty where they are not known.
        idle: those of them whose lines did not run.
    """

    children: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    output: str = ""
    was_tuple: bool = False
    visits: tuple[tuple[int, int], ...] = ()
    last_use: int | None = None
    operations: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


@dataclass(slots=True)
class Structure:
    """A model, as far as the linter knows it.

    Attributes:
        modules: the modules, by dotted path; the root is `""`.
        is_ordered: whether a run of the model was recorded.
        needs_input: whether the model's forward has an argument that has to be given.
        aliases: names that stand for other modules, so that an unknown name means nothing.
    """

    modules: dict[str, Module] = field(default_factory=dict)
    is_ordered: bool = False
    needs_input: bool = False
    aliases: frozenset[str] = frozenset()

    def places(self, path: Path) -> list[str] | None:
        """Return the modules that a path can mean, None where that cannot be told."""
        found = [""]
        for item in path:
            following = []
            for place in found:
                below = self._below(place, item)
                if below is None:
                    return None
                following += below
            found = following
        return found

    def place(self, path: Path) -> str | None:
        """Return the one module that a path means, None where it may be several."""
        found = self.places(path)
        return found[0] if found is not None and len(found) == 1 else None

    def _below(self, place: str, item: str | int | Round) -> list[str] | None:
        module = self.modules.get(place)
        if module is None:
            return None
        names = module.children
        if isinstance(item, Round):
            return [_join(place, name) for name in names]
        if isinstance(item, int):
            return [_join(place, names[item])] if -len(names) <= item < len(names) else None
        return [_join(place, item)] if item in names else None

    def missing(self, path: Path) -> tuple[str, str | int] | None:
        """Return the module and the name (or index) at which a path leads nowhere.

        None where it exists, and where an attribute of a module leads out of what is known.
        """
        found = [""]
        for item in path:
            following: list[str] = []
            absent: list[str] = []
            for place in found:
                below = self._below(place, item)
                if below is None:
                    if self._may_have(place, item):
                        return None
                    absent.append(place)
                else:
                    following += below
            if absent and not following and not isinstance(item, Round):
                return absent[0], item
            found = following
        return None

    def _may_have(self, place: str, item: str | int | Round) -> bool:
        module = self.modules.get(place)
        if module is None or isinstance(item, Round):
            return True
        if isinstance(item, int):
            # what is no container of modules may have a __getitem__ of its own
            return not module.children
        return item in module.attributes or item in self.aliases or item in ENVOY_NAMES

    def near(self, place: str, name: str) -> list[str]:
        """Return the names of modules and ports that are nearest to one that does not exist."""
        known = [*self.modules[place].children, *PORTS]
        return difflib.get_close_matches(name, known, n=3, cutoff=0.5)

    def begins(self, place: str) -> int | None:
        """Return when a module was first called."""
        visits = self.modules[place].visits
        return visits[0][0] if visits else None

    def ends(self, place: str) -> int | None:
        """Return when a module first returned."""
        visits = self.modules[place].visits
        return visits[0][1] if visits else None

    def fits(self, path: Path) -> bool:
        """Return whether a path may be one of this model, if perhaps misspelled."""
        if not path or not isinstance(path[0], str) or not self.modules:
            return True
        name = path[0]
        if self._below("", name) is not None or self._may_have("", name):
            return True
        if name in ("generator", "tokenizer"):
            return True
        return bool(difflib.get_close_matches(name, self.modules[""].children, cutoff=0.6))

    def as_json(self) -> dict[str, Any]:
        """Return the structure as JSON holds it."""
        return {
            "is_ordered": self.is_ordered,
            "needs_input": self.needs_input,
            "modules": {path: asdict(module) for path, module in self.modules.items()},
        }


def structure_of(found: Mapping[str, Any]) -> Structure:
    """Read a structure from JSON."""
    modules = {
        path: Module(
            children=tuple(one["children"]),
            attributes=tuple(one["attributes"]),
            output=one["output"],
            was_tuple=one["was_tuple"],
            visits=tuple((begin, end) for begin, end in one["visits"]),
            last_use=one["last_use"],
            operations=tuple(one["operations"]),
            idle=tuple(one["idle"]),
        )
        for path, one in found["modules"].items()
    }
    return Structure(modules, found["is_ordered"], found["needs_input"])


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
