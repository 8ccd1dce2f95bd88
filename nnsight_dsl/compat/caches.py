"""Caches as programs written for nnsight read them.

    cache["model.transformer.h.0"].output       # the name of the root may be left out
    cache.transformer.h[0].output               # and a place be reached by attributes
    cache["model.transformer.h"][0].output      # a container has a view, too

A value that is not kept is None; of several visits it is a list. A cache can be pickled, and then
has the values without the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.runtime.errors import PathError
from nnsight_dsl.tracing.cache import Cache, Entry, without_root


class KeptValues(Cache):
    """The values behind a view, as `cache._cache`."""

    @property
    def model(self) -> Envoy | None:
        """The wrapper whose values these are; a cache that was pickled has none until it is set."""
        return self._root

    @model.setter
    def model(self, root: Envoy | None) -> None:
        self._root = root


class NoSuchEntryError(PathError, KeyError):
    """A path is not in a cache."""

    __str__ = PathError.__str__


class CacheView:
    """A cache, or a place in it."""

    def __init__(self, cache: KeptValues, paths: Sequence[str] | None = None) -> None:
        self._cache = cache
        # None for the whole cache; several where a name may mean several places
        self._paths = paths

    @property
    def output(self) -> Any:
        """The output; the list of them after several visits, None if none is kept."""
        return self._value("output")

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)`; the list of them after several visits, None if none is kept."""
        return self._value("inputs")

    @property
    def input(self) -> Any:
        """The first argument; the list of them after several visits, None if none is kept."""
        return self._value("input")

    @property
    def root(self) -> CacheView:
        """The view of the root."""
        return CacheView(self._cache, [""])

    def keys(self) -> Sequence[str]:
        """Paths with the name of the root, in the order of the run."""
        return list(self._cache)

    def values(self) -> list[CacheView]:
        """The views at the paths."""
        return [self[path] for path in self._cache]

    def items(self) -> list[tuple[str, CacheView]]:
        """The paths, each with its view."""
        return [(path, self[path]) for path in self._cache]

    def __iter__(self) -> Iterator[str]:
        if self._paths is not None:
            raise TypeError("a place in a cache cannot be iterated over; iterate over cache.keys()")
        return iter(self._cache)

    def __contains__(self, path: object) -> bool:
        return path in self._cache

    def __len__(self) -> int:
        if self._paths is None:
            return len(self._cache)
        entry = self._entry()
        return max(len(entry.outputs), len(entry.all_inputs))

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_cache" not in self.__dict__:
            raise AttributeError(name)
        if name in ("output", "inputs", "input"):
            # Python has dropped the error that the property raised: raise it again
            return object.__getattribute__(self, name)
        return self[name]

    def __getitem__(self, item: int | str) -> CacheView:
        cache = self._cache
        if self._paths is None:
            found = [path for path in without_root(str(item)) if cache.has_place(path)]
        else:
            found = [one for path in self._paths if (one := self._below(path, item)) is not None]
        if not any(self._is_kept(path) for path in found):
            raise NoSuchEntryError(
                f"{self._spelled(item)} is not in the cache, which has {len(cache)} modules; the "
                f"first are {list(cache)[:5]}, and modules= says which are kept"
            )
        return CacheView(cache, found)

    def _below(self, path: str, item: int | str) -> str | None:
        below = f"{path}.{item}" if path else str(item)
        root = self._cache.model
        if isinstance(item, int) and item < 0:
            if root is None:
                return None
            below = root._envoy_at(path)[item]._path
        return below if self._cache.has_place(below) else None

    def _is_kept(self, path: str) -> bool:
        """True if there are values at a path or below it."""
        cache = self._cache
        if not path or cache.entry_at(path) is not None:
            return True
        root = cache.model
        # an alias leads to the module's original path
        native = path if root is None else root._envoy_at(path)._path
        return any(one.startswith(f"model.{native}.") for one in cache)

    def _entry(self) -> Entry:
        paths = self._paths or ()
        entry = next((one for path in paths if (one := self._cache.entry_at(path))), None)
        if entry is None:
            raise NoSuchEntryError(
                f"{paths[0] if paths and paths[0] else 'the whole cache'} has no values of its "
                "own; name a module in it that was called"
            )
        return entry

    def _value(self, name: str) -> Any:
        entry = self._entry()
        visits = entry.outputs if name == "output" else entry.all_inputs
        return getattr(entry, name) if visits else None

    def _spelled(self, item: int | str) -> str:
        return repr(item if not self._paths else f"{self._paths[0]}.{item}".lstrip("."))

    def __repr__(self) -> str:
        if self._paths is None:
            return repr(self._cache)
        return f"<{self._paths[0] or 'model'} in a {self._cache!r:.60}>".replace("<cache", "cache")
