"""Facts about a model: its paths, the order in which its modules run, the types of their outputs.

The facts are plain data, made by `recording`. They are cached as JSON between calls of the linter,
so that a second call does not import torch.

    structure.place(("transformer", "h", -1))       # "transformer.h.11"
    structure.missing(("transformer", "head"))      # ("transformer", "head")

Times (`visits`, `last_use`) are ticks of one counter over the whole run, so they can be compared
across modules. They are known only if `is_ordered`; a model that could not be run has its modules
and attributes only. A rule has to treat an absent fact as unknown, not as false.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nnsight_dsl.transforms.requests import MOVED

from .accesses import Path, Round

PORTS = ("output", "input", "inputs")
ENVOY_NAMES = frozenset("all device devices get iter next parent path root skip source".split())


@dataclass(frozen=True, slots=True)
class Module:
    """One module of a model.

    Attributes:
        children: names of its direct submodules, in order.
        attributes: names of its other attributes.
        output: `"tensor"`, `"tuple"`, the name of another type, or `""` if it was not called.
        was_tuple: True for a layer that returned a tuple before transformers 5.
        visits: begin and end of its calls, in ticks of a counter over all modules.
        last_use: tick at which its first output was last used, None if it was not used or is
            returned by the model.
        operations: names of the operations in its forward, empty if they are unknown.
        idle: names of the operations whose lines did not run.
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
    """The known facts about a model.

    Attributes:
        modules: the modules, by dotted path; the root is `""`.
        is_ordered: True if a run of the model was recorded, so that `visits` are known.
        needs_input: True if the model's forward has a required argument.
        aliases: names that the linted file may add to modules, so that a path through one of them
            is not reported as missing.
    """

    modules: dict[str, Module] = field(default_factory=dict)
    is_ordered: bool = False
    needs_input: bool = False
    aliases: frozenset[str] = frozenset()

    def places(self, path: Path) -> list[str] | None:
        """Return the modules that a path can mean, None if a part of it is unknown."""
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
        """Return the only module that a path can mean, None if there may be several or none."""
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
        moved = item.removeprefix(MOVED)
        return [_join(place, one) for one in (item, moved) if one in names][:1] or None

    def missing(self, path: Path) -> tuple[str, str | int] | None:
        """Return the module and the name or index at which a path ends in a missing attribute.

        None if the path exists, or passes through an attribute that is not a known module.
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
            # a module without children may define a `__getitem__`
            return not module.children
        return item in module.attributes or item in self.aliases or item in ENVOY_NAMES

    def near(self, place: str, name: str) -> list[str]:
        """Return the names of modules and ports that are most similar to a missing one."""
        known = [*self.modules[place].children, *PORTS]
        return difflib.get_close_matches(name, known, n=3, cutoff=0.5)

    def begins(self, place: str) -> int | None:
        """Return the tick at which a module was first called, None if it was not."""
        visits = self.modules[place].visits
        return visits[0][0] if visits else None

    def ends(self, place: str) -> int | None:
        """Return the tick at which a module first returned, None if it was not called."""
        visits = self.modules[place].visits
        return visits[0][1] if visits else None

    def fits(self, path: Path) -> bool:
        """Return whether a path may belong to this model, allowing for a misspelled first name."""
        if not path or not isinstance(path[0], str) or not self.modules:
            return True
        name = path[0]
        if self._below("", name) is not None or self._may_have("", name):
            return True
        if name in ("generator", "tokenizer"):
            return True
        return bool(difflib.get_close_matches(name, self.modules[""].children, cutoff=0.6))

    def as_json(self) -> dict[str, Any]:
        """Return the structure as values that `json` can write."""
        return {
            "is_ordered": self.is_ordered,
            "needs_input": self.needs_input,
            "modules": {path: asdict(module) for path, module in self.modules.items()},
        }


def structure_of(found: Mapping[str, Any]) -> Structure:
    """Rebuild a structure from the result of `as_json`, as read by `json`."""
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
