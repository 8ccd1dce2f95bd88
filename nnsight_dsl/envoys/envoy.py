"""Envoys: the user-facing mirror of a model's modules.

`model.transformer.h[3]` is an envoy with the same attributes as the module behind it, and three
more, its ports: `.output`, `.input` and `.inputs`. These have values only while the model runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

from nnsight_dsl.envoys.attributes import IN_INIT, keeping_attributes
from nnsight_dsl.envoys.classes import class_below
from nnsight_dsl.envoys.copying import deep_copied, reduced, restore
from nnsight_dsl.envoys.ports import PORTS, Ports
from nnsight_dsl.envoys.renaming import Renaming
from nnsight_dsl.envoys.source import Source
from nnsight_dsl.envoys.tree import FACTS, attribute_at, device_of, how_to_reach
from nnsight_dsl.envoys.walking import CHANGING, WALKING, WEIGHTS, walking
from nnsight_dsl.runtime.errors import NotRunningError, PathError
from nnsight_dsl.runtime.locations import Place, children_of
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.runtime.values.known_types import (
    NOT_THERE,
    class_attribute,
    is_computed_by_user,
    is_of_library,
)
from nnsight_dsl.transforms import requests

_OWN = frozenset({"_module", "_path", "_parent", "_key", "_root", "_below", "_at", "_part"})


_Error = TypeVar("_Error", bound=Exception)

_NO_ALIASES = Renaming({}, nn.Identity(), object)


class Envoy(Ports):
    """The mirror of one module.

    Every attribute other than a port, a submodule or an envoy's method is the module's:
    `layer.weight`, `layer.training`, `layer.parameters()`. A method that changes the module and
    returns it, as `layer.half()` or `layer.eval()`, returns the envoy. In a block,
    `named_modules()` and its like iterate over envoys, whose values can be read.

    A submodule that is named like a port or a method of envoys is reached by its name in brackets:
    `layer["output"].dense.output` is the output of `dense` in the submodule `output`, while
    `layer.output` is the layer's own output.

    A subclass may add attributes: properties, slots and other descriptors, class attributes, and
    those that its `__init__` sets. They belong to the wrapper. Any other attribute that is set
    belongs to the module, and a module that is set becomes a submodule.

    Where the module has no attribute of the name, an envoy has these:

    - `path`: the dotted path with the name of the root, `"model.transformer.h.0"`;
    - `parent` and `root`: the envoy above, None for the root, and that of the whole model;
    - `devices`: the set of devices of the parameters;
    - `trace`, `scan`, `plan`, `session`, `edit` and `clear_edits`: those of a wrapper of this part
      of the model, which they run alone: `model.lm_head.trace(hidden)`.
    """

    _parent: Envoy | None
    # at the root: True if a call in a block runs PyTorch's hooks; `nnsight_dsl.compat` sets it
    _calls_hooks = False

    _wrappers = "nnsight_dsl.modeling.base"
    """Module with the wrapper that this class makes when it is called; it imports this one."""
    _envoy_class: type[Envoy]
    """Class of the envoys below a root."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a wrapper: `Envoy(module)` is `NNsight(module)`."""
        if "_wrappers" in cls.__dict__:
            return super().__new__(import_module(cls._wrappers).NNsight)
        if args and cls.__init__ is object.__init__:
            raise TypeError(
                f"{cls.__name__} is a class of envoys, which a wrapper makes of its submodules; "
                f"derive {cls.__name__} from NNsight to wrap a module"
            )
        return super().__new__(cls)

    @classmethod
    def _of(cls, module: nn.Module, key: str = "", parent: Envoy | None = None) -> Envoy:
        """Make the mirror of a module at a place of a tree."""
        envoy: Envoy = Ports.__new__(cls)
        envoy._put_at(module, key, parent)
        return envoy

    def _put_at(self, module: nn.Module, key: str = "", parent: Envoy | None = None) -> None:
        """Mirror a module from now on, at a place of a tree; without a parent as its root."""
        self._module = module
        self._key = key
        self._parent = parent
        self._path = key if parent is None or not parent._path else f"{parent._path}.{key}"
        self._root: Envoy = self if parent is None else parent._root
        self._below: dict[str, Envoy] = {}
        self._at: dict[int, tuple[Envoy, dict[str, Any], str, nn.Module]] = {}

    # the tree

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_module" not in self.__dict__:
            raise AttributeError(name)
        if class_attribute(type(self), name) is not NOT_THERE:
            # Python has dropped the error that a property raised: raise it again
            return object.__getattribute__(self, name)
        if name in children_of(self._fresh()):
            return self._child(name)
        alias = self._aliased(name)
        if alias is not None:
            return alias
        if name in CHANGING:
            return self._changing(name)
        if name in WALKING and current_machine() is not None:
            return walking(self, name)
        try:
            value = getattr(self._module, name)
        except AttributeError:
            if name in ("module", "_model"):
                return self._module
            if name in FACTS:
                return FACTS[name](self)
            error = self._no_such(name)
            raise self._raised(error, may_be_asked=True) from None
        if isinstance(value, nn.Parameter):
            return self._root._weight(self, name, value)
        if name in WEIGHTS:
            self._root._check_use(self, f".{name}()")
        return value if not isinstance(value, nn.Module) else self._mirror_of(value) or value

    def __getitem__(self, item: int | slice | str) -> Any:
        if type(item) is int:
            # Each access of a block takes this path. An attribute of a module or an envoy costs
            # 28 ns, since their classes define `__getattr__`, and a subscript 12.
            try:
                found, own, key, module = self._at[item]
                # unless the index leads to another module now, as after an item was deleted
                if own["_modules"][key] is module:
                    return found
            except KeyError:
                pass
        if isinstance(item, str):
            child = self._child(item) or self._aliased(item)
            if child is None:
                raise self._raised(self._no_such(item))
            return child
        names = list(children_of(self._fresh()))
        if isinstance(item, slice):
            return [self._child(name) for name in names[item]]
        index = item.__index__()
        if not -len(names) <= index < len(names):
            numbered = f"they are numbered from 0 to {len(names) - 1}" if names else "it has none"
            error = IndexError(
                f"{self._path or 'the model'} has {len(names)} modules, and number {index} was "
                f"asked for; {numbered}"
            )
            raise self._raised(error)
        child = self._child(names[index])
        is_list = isinstance(self._module, nn.ModuleList)
        if child is not None and is_list and names[index] == str(item):
            # cached, so that later look-ups do not list the names, of which there may be thousands
            own = self._module.__dict__
            self._at[index] = child, own, names[index], own["_modules"][names[index]]
        return child

    def __len__(self) -> int:
        return len(children_of(self._fresh()))

    def __iter__(self) -> Iterator[Envoy]:
        return self._places_below()

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        aliases = self._renaming.names_in(self._module, self._above())
        facts = (name for name in FACTS if not name.startswith("_"))
        return sorted({*super().__dir__(), *dir(self._fresh()), *aliases, *facts})

    def __repr__(self) -> str:
        return self._renaming.printed(self._fresh(), self._above())

    def get(self, path: str) -> Any:
        """Return what a dotted path below this envoy leads to.

        Args:
            path: names of modules, numbers of list items, aliases and attributes, joined by dots.
                In a run it may end with a port.

        Returns:
            The envoy, the same object as by attributes; a parameter or another attribute of a
            module; the value of a port.

        Raises:
            PathError: it leads nowhere; the message has the nearest names.
            NotRunningError: it ends with a port, and no model is running.

        Example:
            >>> model.get("transformer.h.0") is model.transformer.h[0]
            True
            >>> model.get("transformer.wte.weight").shape
            torch.Size([50257, 768])
        """
        found: Any = self
        self._fresh()
        for name in path.split(".") if path else ():
            below = found._descend(name) if isinstance(found, Place) else None
            # what is not a place: a port, an attribute of a module or of an object in one
            found = attribute_at(self, path, found, name) if below is None else below
        return found

    def _envoy_at(self, path: str) -> Envoy:
        """Return the envoy at a dotted path below this one.

        Raises:
            PathError: there is no module.
        """
        found: Envoy = self
        self._fresh()
        for name in path.split(".") if path else ():
            child = found._child(name) or found._aliased(name)
            if child is None:
                raise self._raised(found._no_such(name))
            found = child
        return found

    @property
    def device(self) -> torch.device:
        """Device of the module's first parameter or buffer.

        If accelerate has offloaded the weights, which are then on the meta device between calls,
        it is the device of the computation. For a model that is not loaded yet it is meta.
        """
        return device_of(self._fresh()) or torch.device("cpu")

    def _fresh(self) -> nn.Module:
        """Return the current module at the place, which may have been replaced."""
        place: Envoy = self
        while (parent := place._parent) is not None:
            if parent._module._modules.get(place._key) is not place._module:
                self._refresh()
                break
            place = parent
        return self._module

    def _child(self, name: str) -> Envoy | None:
        module = children_of(self._module).get(name)
        if module is None:
            return None
        child = self._below.get(name)
        if child is None:
            child = self._below[name] = class_below(self, name, module)._of(module, name, self)
            own = self.__dict__
            if not hasattr(type(self), name) and name not in _OWN and name not in own:
                # so that `envoy.name` no longer needs `__getattr__`, most of a path's price
                own[name] = child
        elif child._module is not module:
            child._rebind(module)
        return child

    @property
    def _renaming(self) -> Renaming:
        renaming: Renaming = self._root.__dict__.get("_aliases", _NO_ALIASES)
        return renaming

    def _above(self) -> tuple[tuple[nn.Module, str], ...]:
        """Return the modules above this one, the root first, each with the next one's name."""
        found: list[tuple[nn.Module, str]] = []
        place: Envoy = self
        while (parent := place._parent) is not None:
            found.append((parent._module, place._key))
            place = parent
        return tuple(reversed(found))

    def _aliased(self, name: str) -> Envoy | None:
        path = self._renaming.path_of(self._module, name, self._above())
        if path is None:
            return None
        found: Envoy | None = self
        for part in path:
            found = found._child(part) if found is not None else None
        return found

    def _mirror_of(self, module: nn.Module) -> Envoy | None:
        """Find the envoy of a module that an attribute leads to, as `base_model` does."""
        for path, one in self._module.named_modules():
            if one is module:
                return self._envoy_at(path)
        return None

    def _changing(self, name: str) -> Callable[..., Any]:
        """Return a method that changes the module, and returns the envoy in its place."""

        def change(*args: Any, **kwargs: Any) -> Any:
            self._root._check_use(self, f".{name}()")
            # weights that are loaded later would not be changed
            self._root._prepare()
            result = getattr(self._module, name)(*args, **kwargs)
            return self if result is self._module else result

        return change

    def _rebind(self, module: nn.Module) -> None:
        """Mirror another module from now on, as do the envoys below."""
        self.__dict__["_module"] = module
        self._at.clear()
        for name, child in list(self._below.items()):
            below = children_of(module).get(name)
            if below is None:
                del self._below[name]
                self.__dict__.pop(name, None)
            elif child._module is not below:
                child._rebind(below)

    def _refresh(self) -> None:
        parent = self._parent
        if parent is None:
            return
        parent._refresh()
        module = parent._module._modules.get(self._key)
        if module is None:
            parent._below.pop(self._key, None)
            parent._at.clear()
            parent.__dict__.pop(self._key, None)
            raise parent._no_such(self._key)
        if module is not self._module:
            self._rebind(module)

    def _descend(self, item: str | int) -> Place | None:
        if isinstance(item, int):
            names = list(children_of(self._fresh()))
            return self._child(names[item]) if -len(names) <= item < len(names) else None
        self._fresh()
        found = self._child(item) or self._aliased(item)
        if found is None and item == "source":
            return self.source
        if found is None:
            # attributes computed by a user's class are not evaluated just to resolve a path
            is_users = is_computed_by_user(self._module, item)
            value = None if is_users else getattr(self._module, item, None)
            found = self._mirror_of(value) if isinstance(value, nn.Module) else None
        return found

    def _places_below(self) -> Iterator[Envoy]:
        for name in list(children_of(self._fresh())):
            child = self._child(name)
            if child is not None:
                yield child

    @staticmethod
    def _raised(error: _Error, *, may_be_asked: bool = False) -> _Error:
        """Prepare an error for the user's line; in a block the end of the run does that."""
        if current_machine() is None:
            towards_user(error, may_be_asked=may_be_asked)
        return error

    def _no_such(self, name: str) -> PathError:
        known = [*children_of(self._module), *PORTS]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        where = self._path or type(self._module).__name__
        keys = self._renaming.keys_of(name)
        if keys:
            return PathError(
                f"{where} has no module {' or '.join(map(repr, keys))}, which rename= gives the "
                f"name {name!r}; print(model) shows where the aliases lead"
            )
        advice = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else "it has " + (", ".join(repr(known_name) for known_name in known[:12]))
        )
        return PathError(
            f"{where} has no module or attribute {name!r}; {advice} (print(model) shows the tree)"
        )

    def _part_of(self, envoy: Envoy) -> Any:
        """Return the wrapper that runs a part of this model."""
        raise self._raised(
            PathError(f"{envoy._path or 'this envoy'} is not part of a model that can be run")
        )

    def _prepare(self) -> None:
        """Get ready for a run, where this is the root of a model."""

    def _check_use(self, envoy: Envoy, what: str) -> None:
        """Refuse a use of a module that a block cannot make, where this is the root of a model."""

    def _weight(self, envoy: Envoy, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return what a block is handed for a parameter, where this is the root of a model."""
        return value

    # ports

    def _outside(self, what: str, port: str) -> Exception:
        error = super()._outside(what, port)
        if port in children_of(self._module):
            error.add_note(how_to_reach(self, port))
        return error

    @property
    def source(self) -> Source:
        """The operations inside the module's forward; print it to see them beside the text."""
        self._fresh()
        return Source(self)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ports = [name for name in PORTS if name in cls.__dict__ and not is_of_library(cls)]
        if ports:
            raise TypeError(
                f"{ports[0]!r} of {cls.__name__} is a port of every wrapper; give the attribute "
                "another name"
            )
        if "__init__" in cls.__dict__ and not is_of_library(cls):
            cls.__init__ = keeping_attributes(cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if name in _OWN or name in getattr(type(self), "_own", ()):
            own[name] = value
        elif self._is_own(name):
            object.__setattr__(self, name, value)
        elif name in PORTS:
            self._write(name, value)
        else:
            # a model that is not loaded yet is loaded first: loading makes other modules
            self._root._prepare()
            self._root._check_use(self, f"a write of .{name}")
            setattr(self._fresh(), name, value._module if isinstance(value, Envoy) else value)
            if not isinstance(value, (Envoy, nn.Module)):
                own.pop(name, None)

    def _is_own(self, name: str) -> bool:
        """True if an attribute is one that a subclass adds to the wrapper, not a module's."""
        kind, own = type(self), self.__dict__
        if is_of_library(kind):
            return False
        if own.get(IN_INIT) or (name in own and name not in self._below):
            return True
        for cls in kind.__mro__:
            if name in cls.__dict__:
                # a default of this package belongs to the module: `model.training = False`
                return not is_of_library(cls)
        return False

    def __delattr__(self, name: str) -> None:
        if self._is_own(name):
            object.__delattr__(self, name)
            return
        self._root._check_use(self, f"a deletion of .{name}")
        delattr(self._fresh(), name)
        self.__dict__.pop(name, None)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Envoy:
        copied: Envoy = deep_copied(self, memo)
        return copied

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        restore(self, state)

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Call the module.

        In a block this is a plain call of `forward`, invisible to the run. With `hook=True` its
        values are offered as those of the model's own calls, so that other invokes can read them.
        """
        machine = current_machine()
        if machine is None:
            if hook:
                error = NotRunningError(
                    "hook=True offers a call to the blocks of a run, and none is under way; "
                    "call the module without it"
                )
                raise towards_user(error)
            return self._fresh()(*args, **kwargs)
        self._root._check_use(self, "a call")
        if hook:
            return machine.request((requests.CALL, self, args, kwargs))
        if self._root._calls_hooks:
            return self._fresh()(*args, **kwargs)
        return self._fresh().forward(*args, **kwargs)


Envoy._envoy_class = Envoy
