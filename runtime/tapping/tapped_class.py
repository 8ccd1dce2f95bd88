"""The class of a tapped module: a subclass whose `__call__` is a visit.

For the length of a run, the class of a tapped module is a subclass made here, whose `__call__`
calls the original one. That is the only place from which all of this can be had at once: the input
as the caller gave it, the output as the caller receives it (after the user's own forward hooks),
and a call that does not happen at all (a skip). The module's `__dict__` and its hooks are not
touched, and giving the class back costs 0.1 µs. To `isinstance`, `issubclass`, `==`, `__class__`,
in a set or as a key, when an attribute of it is set or an instance made, and by name the subclass
is the class it stands in for. Only `type(module) is C` tells them apart, and so does
`super(type(self), self)`, which fails in any subclass.

The original `__call__` is looked up at each call, as Python does, so that a patch of the class, of
its bases or of `nn.Module` is in force exactly as long as it is there. Calls that go around the
class (`nn.Module.__call__(module, x)`, a bound `__call__` that the model has stored) arrive at
torch's `_call_impl`, which the subclass has, too: they are visits like any other.

In other threads, and while a block is being advanced (a module that a block calls itself), a
tapped module behaves as an untapped one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import get_ident
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from nnsight_dsl.runtime.machines.ambient import top_saved_hooks
from nnsight_dsl.runtime.machines.machine import advanced
from nnsight_dsl.transforms.names import TAPPED
from nnsight_dsl.transforms.requests import OUTPUT, READ

from .offering import Visited
from .torch_fast_path import keep_from_compiling, switches

set_class = object.__dict__["__class__"].__set__
_set_bases = type.__dict__["__bases__"].__set__
_all_forward_pre_hooks = torch_module._global_forward_pre_hooks
_all_forward_hooks = torch_module._global_forward_hooks
_all_backward_pre_hooks = torch_module._global_backward_pre_hooks
_all_backward_hooks = torch_module._global_backward_hooks
taps_now: dict[int, Visited] = {}
"""The taps of all runs that are under way, by identity of their modules."""


def _of_torch(name: str) -> Any:
    """Return a method of `nn.Module`, None where something else has taken its place already."""
    found = nn.Module.__dict__[name]
    file = getattr(getattr(found, "__code__", None), "co_filename", None)
    return found if file == torch_module.__file__ else None


_torch_call = _of_torch("__call__")
_torch_call_impl = _of_torch("_call_impl")


def install_tap(tap: Visited, module: nn.Module) -> None:
    """Let a module offer its values to the driver of a tap, until `remove_tap`."""
    taps_now[id(module)] = tap
    set_class(module, tapped_class(module, type(module)))


def remove_tap(module: nn.Module) -> None:
    """Give a module its own class back, if it has not got it."""
    cls = type(module).__dict__.get(TAPPED)
    if cls is not None:
        set_class(module, cls)
    taps_now.pop(id(module), None)


def _become(module: nn.Module, cls: type) -> None:
    """A module gives itself another class during the run, as lazy modules do: it stays tapped."""
    set_class(module, tapped_class(module, cls))


def tapped_class(module: nn.Module, cls: type) -> type:
    """Return the class that a module of a class has for the length of a run."""
    reference = _tapped_classes.get(id(cls))
    known = reference and reference()
    if not known:
        known = _remembered(_tapped_classes, cls, _tapped_class(cls))
        # a module that compares by its contents cannot be a key: each run makes a new class
        with suppress(TypeError):
            _keepers.setdefault(module, []).append(known)
    return known


# A class refers to its bases, so a table from classes to their tapped classes would keep both for
# ever, even with weak keys. These tables only find tapped classes by identity of the class; each
# is kept alive by the first module that had it.
_tapped_classes: dict[int, ref[type]] = {}
_metaclasses: dict[int, ref[type]] = {}
_keepers: WeakKeyDictionary[nn.Module, list[type]] = WeakKeyDictionary()


def _remembered(table: dict[int, ref[type]], kind: type, made: type) -> type:
    """Enter a class in a table, for as long as it lives."""
    key = id(kind)

    def forget(reference: ref[type]) -> None:
        if table.get(key) is reference:
            del table[key]

    table[key] = ref(made, forget)
    return made


def _in_force(cls: type, name: str) -> Callable[..., Any]:
    """Return a special method of a class as Python finds it: whoever put it there, and however.

    Returns:
        A function of the module and the arguments of the call.
    """
    found = next(vars(base)[name] for base in cls.__mro__ if name in vars(base))
    if type(found) is FunctionType:
        return found
    get = getattr(type(found), "__get__", None)

    def bound(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        method = found if get is None else get(found, module, cls)
        return method(*args, **kwargs)

    return bound


class _Looking:
    """What the run of this thread does with modules that pass over their parts."""

    @staticmethod
    def waits_inside(module: nn.Module) -> bool:
        tap = _tap_at(module)
        if tap is None:
            return False
        if tap.inside is not None:
            return True
        taps = [taps_now.get(id(one)) for one in module.modules() if one is not module]
        return any(tap is not None and tap.is_awaited() for tap in taps)

    @staticmethod
    def visit(module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tap = _tap_at(module)
        if tap is None or tap.is_entered:
            return call(module, *args, **kwargs)
        tap.is_entered = True
        try:
            return tap.visit(call, module, args, kwargs)
        finally:
            tap.is_entered = False

    @staticmethod
    def untapped(module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tap = _tap_at(module)
        if tap is None:
            return call(*args, **kwargs)
        tapped = [one for one in module.modules() if TAPPED in vars(type(one))]
        record = tap.driver.record
        depth = len(record)
        record.append((_tap_again, tapped))
        try:
            for one in tapped:
                set_class(one, one.__class__)
            return call(*args, **kwargs)
        finally:
            record.undo(depth)


def _tap_again(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if TAPPED not in vars(type(module)):
            set_class(module, tapped_class(module, type(module)))


def _tap_at(module: nn.Module) -> Visited | None:
    """Return the tap on a module, if it is of a run of a model that this thread makes."""
    tap = taps_now.get(id(module))
    if (
        tap is None
        or not tap.looks_inside
        or tap.driver.thread != get_ident()
        or advanced() is not None
    ):
        return None
    return tap


def _call_of(cls: type) -> Callable[..., Any]:
    """Make the `__call__` of the tapped class of a class."""
    known: Any = None

    def __call__(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        nonlocal known
        # Both are asked for at each call: they may be patched, by a profiler or a test, for some
        # time that has nothing to do with runs.
        call = cls.__call__
        is_torchs = call is _torch_call
        if not is_torchs and call is not known:
            found = _in_force(cls, "__call__")
            if found is call:
                known = call
            call = found
        tap = taps_now.get(id(self))
        if tap is None:
            return call(self, *args, **kwargs)
        driver = tap.driver
        if driver.thread != get_ident() or advanced() is not None:
            return call(self, *args, **kwargs)
        own = self.__dict__
        if (
            not (tap.is_common and driver.is_common)
            or own["_forward_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or _all_backward_hooks
            or _all_backward_pre_hooks
            or top_saved_hooks(True) is not None
            or (driver.has_grad and not torch.is_grad_enabled())
        ):
            is_entered, tap.is_entered = tap.is_entered, True
            try:
                return tap.visit(call, self, args, kwargs)
            finally:
                tap.is_entered = is_entered
        # the common case of `Tap.visit`, without its Python frames
        index = tap.begun_step = tap.begun
        tap.begun = index + 1
        outer, tap.index = tap.index, index
        try:
            if (
                is_torchs
                and driver.is_usual
                and cls._call_impl is _torch_call_impl  # type: ignore[attr-defined]
                and not (
                    own["_forward_pre_hooks"]
                    or _all_forward_pre_hooks
                    or _all_forward_hooks
                    or "_compiled_call_impl" in own
                    or "_call_impl" in own
                )
            ):
                # torch's call of a module without hooks. To leave out its two frames
                # saves 0.5 µs, which is what the rest of a visit costs.
                output = self.forward(*args, **kwargs) if kwargs else self.forward(*args)
            else:
                is_entered, tap.is_entered = tap.is_entered, True
                try:
                    output = call(self, *args, **kwargs)
                finally:
                    tap.is_entered = is_entered
            waiting = tap.waiting
            if waiting:
                machine = waiting[0]
                request = machine.pending
                if (
                    len(waiting) == 1
                    and machine.is_usual
                    and machine.rows is None
                    and machine.step == index
                    and request is not None
                    and request[0] == READ
                    and request[2] == OUTPUT
                ):
                    del waiting[0]
                    output = driver.serve(machine, output, tap)
                else:
                    output = driver.offer(tap, OUTPUT, output)
        finally:
            tap.index = outer
        tap.done += 1
        if index > tap.done_step:
            tap.done_step = index
        if driver.watchers:
            driver.watch(tap, args, kwargs, output)
        return output

    return __call__


def _call_impl_of(cls: type) -> Callable[..., Any]:
    """Make the `_call_impl` of the tapped class of a class."""

    def _call_impl(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        # Torch's own call comes here, and so do calls that go around `__call__`: a bound one that
        # was stored before the run, `nn.Module.__call__(module, x)`, `module._call_impl(x)`. Where
        # hooks see a call, a block does, too.
        call: Callable[..., Any] = cls._call_impl  # type: ignore[attr-defined]
        if call is not _torch_call_impl:
            call = _in_force(cls, "_call_impl")
        tap = taps_now.get(id(self))
        if tap is None or tap.driver.thread != get_ident() or advanced() is not None:
            return call(self, *args, **kwargs)
        if not tap.is_entered:
            return tap.visit(call, self, args, kwargs)
        # a call of the same module from here on, as of one that calls itself, is another visit
        tap.is_entered = False
        try:
            return call(self, *args, **kwargs)
        finally:
            tap.is_entered = True

    return _call_impl


def _tapped_class(cls: type) -> type:
    """Make the subclass that a tapped module has during a run."""

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        # a copy that a block or the model makes during the run is one of the original class
        reduce: Any = cls.__reduce_ex__
        function, args, *rest = reduce(self, protocol)
        return function, tuple(cls if arg is tapped else arg for arg in args), *rest

    def __new__(kind: type, *args: Any, **kwargs: Any) -> Any:
        new: Any = cls.__new__
        return new(_untapped(kind), *args, **kwargs)

    namespace = {
        **switches(cls, _Looking),
        TAPPED: cls,
        "__call__": keep_from_compiling(_call_of(cls)),
        "__class__": property(lambda self: cls, _become),
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__new__": __new__,
        "__qualname__": cls.__qualname__,
        "__reduce_ex__": __reduce_ex__,
        "__slots__": (),
        "_call_impl": keep_from_compiling(_call_impl_of(cls)),
    }
    # the base is exchanged afterwards: making a subclass of `cls` would call its
    # __init_subclass__, which may register subclasses or want arguments
    kind = type(cls)
    made = _metaclasses.get(id(kind))
    metaclass = (made and made()) or _remembered(_metaclasses, kind, _metaclass(kind))
    tapped: type = type.__new__(metaclass, cls.__name__, (nn.Module,), namespace)
    try:
        _set_bases(tapped, (cls,))
    except TypeError:
        # a class with slots has a separate layout, which only a subclass made of it shares
        tapped = metaclass(cls.__name__, (cls,), namespace)
    return tapped


def _metaclass(kind: Any) -> type:
    """Make the class of tapped classes, for classes of a kind.

    To the questions that Python asks a tapped class, it gives the answers of the class behind it.
    """

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a module that a forward makes of `type(self)` stays when the run is over
        return kind.__call__(_untapped(self), *args, **kwargs)

    def __eq__(self: Any, other: object) -> bool:
        return _untapped(self) is _untapped(other)

    def __hash__(self: Any) -> Any:
        return kind.__hash__(_untapped(self))

    def __instancecheck__(self: Any, one: object) -> Any:
        return type.__instancecheck__(_untapped(self), one)

    def __subclasscheck__(self: Any, one: Any) -> Any:
        # not as its own metaclass would: an abstract class asks all of its subclasses, so this one
        return type.__subclasscheck__(_untapped(self), _untapped(one))

    def __setattr__(self: Any, name: str, value: Any) -> None:
        kind.__setattr__(_untapped(self), name, value)

    def __delattr__(self: Any, name: str) -> None:
        kind.__delattr__(_untapped(self), name)

    namespace = {
        "__call__": __call__,
        "__delattr__": __delattr__,
        "__doc__": kind.__doc__,
        "__eq__": __eq__,
        "__hash__": __hash__,
        "__instancecheck__": __instancecheck__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__setattr__": __setattr__,
        "__subclasscheck__": __subclasscheck__,
    }
    made: type = type.__new__(type(kind), kind.__name__, (kind,), namespace)
    return made


def _untapped(cls: Any) -> Any:
    """Return the class behind a tapped one, and any other object as it is."""
    return vars(cls).get(TAPPED, cls) if isinstance(cls, type) else cls
