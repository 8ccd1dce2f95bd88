"""Caches: the outputs of many modules, kept without naming each.

    with model.trace("Hello") as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0], model.lm_head])

    cache["model.transformer.h.0"].output
    cache.model.transformer.h[0].output

The name of the root, `model`, may be left out of a path. The cache keeps the values that a module's
caller receives, after the edits of all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.runtime.errors import InputError, PathError
from nnsight_dsl.runtime.locations import ROOT, Place
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.values.rows import Cut, Rows, narrow


class Entry:
    """The cached values of one module.

    The cache sets its attributes: an `__init__` would cost as much as the rest of a small entry.

    Attributes:
        outputs: the output of each visit.
        all_inputs: `(args, kwargs)` of each visit, if inputs were asked for.
    """

    __slots__ = ("all_inputs", "outputs")

    outputs: list[Any]
    all_inputs: list[Any]

    @property
    def output(self) -> Any:
        """The output; of a module that was called several times, the list of its outputs.

        Raises:
            AttributeError: the cache keeps no outputs.
        """
        return _one_or_all(self.outputs, "outputs", "include_output")

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)`; of a module that was called several times, the list of them.

        Raises:
            AttributeError: the cache keeps no inputs.
        """
        return _one_or_all(self.all_inputs, "inputs", "include_inputs")

    @property
    def input(self) -> Any:
        """The first argument, as `envoy.input`; of several calls, the list of them.

        Raises:
            AttributeError: the cache keeps no inputs.
        """
        first = [args[0] if args else next(iter(kw.values()), None) for args, kw in self.all_inputs]
        return _one_or_all(first, "inputs", "include_inputs")

    def __repr__(self) -> str:
        return f"<cache entry of {max(len(self.outputs), len(self.all_inputs))} visits>"


class Cache(Mapping[str, Entry]):
    """The return value of `tracer.cache()`: entries by path, as `model.transformer.h.0`."""

    def __init__(
        self,
        root: Envoy,
        modules: set[int] | None,
        rows: Rows | None,
        convert: Callable[[torch.Tensor], torch.Tensor],
        *,
        keeps_output: bool,
        keeps_inputs: bool,
    ) -> None:
        # None in a cache that was pickled, which leaves the model out
        self._root: Envoy | None = root
        self._modules = modules
        self._rows = rows
        self._convert = convert
        self._keeps_output = keeps_output
        self._keeps_inputs = keeps_inputs
        self._entries: dict[str, Entry] = {}
        # a module at several paths has one entry, found by each of them
        self._by_module: dict[int, Entry] = {}

    def record(self, place: Place, inputs: Any, output: Any, factor: int) -> None:
        """Keep one visit to a module; the driver calls this."""
        module = id(place._module)
        entry = self._by_module.get(module)
        if entry is None:
            if not self.watches(place):
                return
            key = _key(place._path)
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = Entry()
                entry.outputs, entry.all_inputs = [], []
            self._by_module[module] = entry
        if self._keeps_output:
            # the common case, without the 3 µs that looking into containers takes
            is_tensor = self._rows is None and isinstance(output, torch.Tensor)
            kept = self._convert(output) if is_tensor else self._kept(output, factor)
            entry.outputs.append(kept)
        if self._keeps_inputs:
            entry.all_inputs.append(self._kept(inputs, factor))

    def watches(self, place: Place) -> bool:
        """Return whether the cache keeps a module; the driver calls this."""
        if self._modules is None:
            # operations are kept only by name, since which ones are tapped differs between runs
            return not isinstance(place, OperationPlace)
        return id(place._module) in self._modules

    def _kept(self, value: Any, factor: int) -> Any:
        if self._rows is not None:
            value = narrow(value, Cut(self._rows, factor))
        return pytree.tree_map(
            lambda leaf: self._convert(leaf) if isinstance(leaf, torch.Tensor) else leaf, value
        )

    def __getitem__(self, path: str) -> Entry:
        entry = self._entries.get(path)
        for below in () if entry is not None else without_root(path):
            entry = entry or self.entry_at(below)
        if entry is None:
            raise KeyError(
                f"{path!r} is not in the cache, which has {len(self._entries)} modules; "
                f"the first are {list(self._entries)[:5]}, and modules= says which are kept"
            )
        return entry

    def entry_at(self, path: str) -> Entry | None:
        """Return the values at a path without the root's name; None if there are none."""
        envoy = None if self._root is None else envoy_at(self._root, path)
        if envoy is None:
            return self._entries.get(_key(path))
        # an alias leads to the module's original path
        return self._by_module.get(id(envoy._module)) or self._entries.get(_key(envoy._path))

    def has_place(self, path: str) -> bool:
        """Return whether a path, without the root's name, leads to a module of the model."""
        if self._root is not None:
            return envoy_at(self._root, path) is not None
        key = _key(path)
        return any(one == key or one.startswith(f"{key}.") for one in self._entries)

    def __getstate__(self) -> dict[str, Any]:
        # without the model, and what only a run needs
        return {"_entries": self._entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _root=None, _by_module={})

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getattr__(self, name: str) -> CacheView:
        root = None if name.startswith("__") else self.__dict__.get("_root")
        if root is None or (name != ROOT and not self.has_place(name)):
            raise AttributeError(
                f"a cache has no attribute {name!r}; write cache.model.path.of.module.output"
            )
        paths = [path for path in without_root(name) if self.has_place(path)]
        return CacheView(self, [root._envoy_at(path) for path in paths])

    def __repr__(self) -> str:
        return f"<cache of {len(self._entries)} modules>"


class CacheView:
    """A place in a cache, reached by attributes and numbers as an envoy is.

    With the name of the root left out, a name may mean two places: `cache.model` is the root, and
    the submodule of that name. The names that follow decide.
    """

    def __init__(self, cache: Cache, envoys: Sequence[Envoy]) -> None:
        self._cache = cache
        self._envoys = envoys

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("output", "inputs", "input"):
            return getattr(self._cache[_key(self._envoys[0]._path)], name)
        return self._below(name, lambda envoy: envoy._envoy_at(name))

    def __getitem__(self, item: int | str) -> CacheView:
        return self._below(item, lambda envoy: envoy[item])

    def _below(self, item: int | str, step: Callable[[Envoy], Any]) -> CacheView:
        found = []
        for envoy in self._envoys[:-1]:
            if (path := _joined(envoy._path, item)) and self._cache.has_place(path):
                found.append(step(envoy))
        last = self._envoys[-1]
        if not found or self._cache.has_place(_joined(last._path, item)):
            # where no place has it, the error is that of the last
            found.append(step(last))
        return CacheView(self._cache, found)


def _joined(path: str, item: int | str) -> str:
    return f"{path}.{item}" if path else str(item)


def without_root(path: str) -> tuple[str, ...]:
    """Return the paths that a path may mean: its first name may be that of the root."""
    first, _, rest = path.partition(".")
    return (rest, path) if first == ROOT else (path,)


def envoy_at(root: Envoy, path: str) -> Envoy | None:
    """Return the envoy at a path without the root's name, None if there is none."""
    try:
        return root._envoy_at(path)
    except PathError:
        return None


def places_of(root: Envoy, modules: Any) -> list[Place]:
    """Return the envoys and operations that a cache is to be kept of.

    Args:
        root: the wrapper that runs.
        modules: envoys, modules or paths, or one of them; a list of modules means its items.

    Raises:
        InputError: an item is neither an envoy of this model nor a path.
        PathError: there is no module at a path.
    """
    is_one = isinstance(modules, (str, nn.Module)) or not isinstance(modules, Iterable)
    if isinstance(modules, Envoy):
        is_one = not isinstance(modules._module, (nn.ModuleList, nn.ModuleDict))
    given: list[Any] = [modules] if is_one else list(modules)
    found: list[Place] = []
    for one in given:
        envoy: Any = _named(root, one) if isinstance(one, str) else one
        if isinstance(one, nn.Module):
            envoy = root._mirror_of(one)
        if not isinstance(envoy, (Envoy, OperationPlace)):
            raise InputError(
                f"modules= has {type(one).__name__} {one!r:.80}, which is not a module of this "
                "model; give paths ('transformer.h.0') or envoys (model.transformer.h[0])"
            )
        envoy._refresh()
        found.append(envoy)
    return found


def _named(root: Envoy, path: str) -> Envoy:
    """Return the envoy at a path with or without the root's name.

    Raises:
        PathError: there is none.
    """
    found = envoy_at(root, path)
    if found is None and path.partition(".")[0] == ROOT:
        below = without_root(path)[0]
        # where the model has no such module, the name is the root's, and the error that of the rest
        found = root._envoy_at(below) if envoy_at(root, ROOT) is None else envoy_at(root, below)
    return root._envoy_at(path) if found is None else found


def _one_or_all(visits: list[Any], what: str, option: str) -> Any:
    if not visits:
        raise AttributeError(
            f"this cache keeps no {what}; write tracer.cache({option}=True) to have them"
        )
    return visits[0] if len(visits) == 1 else visits


def _key(path: str) -> str:
    return f"{ROOT}.{path}" if path else ROOT


def converter(
    device: Any, dtype: torch.dtype | None, *, detach: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that converts each tensor for the cache; it always returns a copy."""

    target = None if device is None else torch.device(device)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        # detaching costs a quarter of a small copy, so only if there is a graph
        value = tensor.detach() if detach and tensor.requires_grad else tensor
        # a copy, since the model may go on editing the tensor in place
        if dtype is None and (target is None or target == value.device):
            # half a microsecond less than `to`
            return value.clone()
        return value.to(
            device=target, dtype=dtype if value.is_floating_point() else None, copy=True
        )

    return convert
