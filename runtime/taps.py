"""Taps: what offers the values of a module while a run lasts.

For the length of a run, the class of a tapped module is a subclass made here, whose `__call__`
stands around the original one. That is the only place from which all of this can be had at once:
the input as the caller gave it, the output as the caller receives it (after the user's own
forward hooks), and a call that does not happen at all (a skip). The module's `__dict__` and its
hooks are not touched, and giving the class back costs 0.1 µs. To `isinstance`, to `__class__` and
by name the subclass is the class it stands in for.

A module outside of a run carries nothing of ours. In other threads, and while a block is being
advanced (a module that a block calls itself), a tapped module behaves as an untapped one.

One kind of hook is not the user's: the ones by which transformers captures hidden states and
attentions. An edit has to come before those capture, so on a module that has them the output is
offered from a hook placed right before the first of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from .locations import Place
from .machine import Machine, current_machine

if TYPE_CHECKING:
    from .driver import Driver

_CAPTURING = "transformers.utils.output_capturing"
"""Module in which transformers defines the hooks of its own output capturing."""

_set_class = object.__dict__["__class__"].__set__
_taps: dict[int, Tap] = {}
_tapped_classes: WeakKeyDictionary[type, type] = WeakKeyDictionary()


class Tap:
    """What a run knows of one place: how often it was visited, and who waits there.

    Attributes:
        begun: visits that have begun in this run.
        done: visits that have ended.
        begun_step: last step in which a visit has begun.
        done_step: last step in which the first visit has ended.
        index: occurrence of the visit that runs now; None for one that no request can mean.
        waiting: machines whose pending request is for this place.
        skips: what replaces the output of the visit that begins, with the rows it is for.
    """

    __slots__ = (
        "begun",
        "begun_step",
        "done",
        "done_step",
        "driver",
        "index",
        "is_stepping",
        "place",
        "skipped_by",
        "skips",
        "waiting",
    )

    def __init__(self, place: Place, driver: Driver, *, is_stepping: bool) -> None:
        self.place = place
        self.driver = driver
        self.is_stepping = is_stepping
        self.begun = 0
        self.done = 0
        self.begun_step = -1
        self.done_step = -1
        self.index: int | None = None
        self.waiting: list[Machine] = []
        self.skips: list[tuple[Machine, Any]] = []
        self.skipped_by: int | None = None

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, offering its input before and its output after."""
        driver = self.driver
        if driver.is_in_backward:
            return call(module, *args, **kwargs)
        if driver.is_stepped:
            if self.is_stepping:
                driver.begin_step()
            # what runs before the first step (an encoder) belongs to it
            step = max(driver.step, 0)
            index = None if self.begun_step == step else step
            self.begun_step = step
        else:
            index = self.begun
        self.begun += 1
        if driver.visit_waiters:
            driver.begin_visit(self.begun - 1)
        outer, self.index = self.index, index
        try:
            if self.waiting:
                args, kwargs = driver.offer_inputs(self, args, kwargs)
            if self.skips:
                output = self._offered(driver.skipped_output(self, call, module, args, kwargs))
                for key in _capturing_hooks(module):
                    module._forward_hooks[key](module, args, output)
                if driver.watchers:
                    driver.watch(self, args, kwargs, output)
                return output
            elif module._forward_hooks and (capturing := _capturing_hooks(module)):
                output = self._call_captured(call, module, args, kwargs, capturing)
                if driver.watchers:
                    driver.watch(self, args, kwargs, output)
                return output
            else:
                output = call(module, *args, **kwargs)
            output = self._offered(output)
            if driver.watchers:
                driver.watch(self, args, kwargs, output)
            return output
        finally:
            self.index = outer

    def _offered(self, output: Any) -> Any:
        if self.waiting:
            output = self.driver.offer_output(self, output)
        self.done += 1
        if self.index is not None:
            self.done_step = self.index
        return output

    def _call_captured(
        self,
        call: Callable[..., Any],
        module: nn.Module,
        args: Any,
        kwargs: Any,
        capturing: list[int],
    ) -> Any:
        """Call a module whose output transformers captures, and offer it right before that."""
        user_hooks: OrderedDict[int, Any] = module._forward_hooks
        ordered = OrderedDict((k, hook) for k, hook in user_hooks.items() if k not in capturing)
        ours = max(user_hooks) + 1_000_000

        def offer(_module: nn.Module, _args: Any, output: Any) -> Any:
            return self._offered(output) if self._is_here() else None

        ordered[ours] = offer
        ordered.update((k, user_hooks[k]) for k in capturing)
        module.__dict__["_forward_hooks"] = ordered
        try:
            return call(module, *args, **kwargs)
        finally:
            # hooks that were registered during the call stay registered
            for key in ordered.keys() - user_hooks.keys() - {ours}:
                user_hooks[key] = ordered[key]
            module.__dict__["_forward_hooks"] = user_hooks

    def _is_here(self) -> bool:
        return self.driver.thread == get_ident() and current_machine() is None


def _capturing_hooks(module: nn.Module) -> list[int]:
    return [
        key
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) == _CAPTURING
    ]


def install_tap(tap: Tap, module: nn.Module) -> None:
    """Let a module offer its values to the driver of a tap, until `remove_tap`."""
    _taps[id(module)] = tap
    cls = type(module)
    _set_class(module, _tapped_classes.get(cls) or _new_tapped_class(cls))


def remove_tap(module: nn.Module) -> None:
    """Give a module its own class back."""
    del _taps[id(module)]
    _set_class(module, module.__class__)


def _become(module: nn.Module, cls: type) -> None:
    """A module gives itself another class during the run, as lazy modules do: it stays tapped."""
    _set_class(module, _tapped_classes.get(cls) or _new_tapped_class(cls))


def _new_tapped_class(cls: type) -> type:
    tapped = _tapped_classes[cls] = _tapped_class(cls)
    return tapped


def _tapped_class(cls: type) -> type:
    call = cls.__call__

    def __call__(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        tap = _taps.get(id(self))
        if tap is None or tap.driver.thread != get_ident() or current_machine() is not None:
            return call(self, *args, **kwargs)
        return tap.visit(call, self, args, kwargs)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        # a copy that a block or the model makes during the run is one of the original class
        reduce: Any = cls.__reduce_ex__
        function, args, *rest = reduce(self, protocol)
        return function, tuple(cls if arg is tapped else arg for arg in args), *rest

    namespace = {
        "__call__": __call__,
        "__class__": property(lambda self: cls, _become),
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__reduce_ex__": __reduce_ex__,
        "__slots__": (),
    }
    # the base is exchanged afterwards: making a subclass of `cls` would call its
    # __init_subclass__, which may register subclasses or want arguments
    tapped: type = type.__new__(type(cls), cls.__name__, (nn.Module,), namespace)
    try:
        tapped.__bases__ = (cls,)
    except TypeError:
        # a class with slots has a layout of its own, which only a subclass made of it shares
        tapped = type(cls)(cls.__name__, (cls,), namespace)
    return tapped
