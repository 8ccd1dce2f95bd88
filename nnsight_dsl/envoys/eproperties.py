"""`eproperty`: views of a served value, and values of one's own, as attributes of a wrapper.

class Mine(NNsight):
    @eproperty(key="output")
    def heads(self, value):                         # what is read: [rows, tokens, 4, width]
        return value.unflatten(-1, (4, -1))

    @heads.transform
    def heads(self, view, raw):                     # an edited view, as the model needs it
        return view.flatten(-2)

    @eproperty
    def telemetry(self, value):
        return value

    @traceable
    def run(self, x):
        x = type(self).telemetry.provide(self, x * 2)
        return self._module(x)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnsight_dsl.envoys.ports import Ports
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tapping.served import ServedPlace, provided, served_place
from nnsight_dsl.runtime.tapping.tapped_class import taps_now
from nnsight_dsl.runtime.values.offers import WriteBack
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import INPUT, INPUTS, OUTPUT

_Callback = Callable[..., Any]


class eproperty(property):
    """An attribute of a wrapper's class whose value is served while a model runs.

    Args:
        read: makes what is read of the value that is served: `read(self, value)`.
        key: `"output"` and `"input"` are those of the module, `"input"` as `(args, kwargs)`; any
            other key is a value of one's own, which `provide` serves. By default the name.
        description: what the value is.

    Example:
        >>> class Mine(NNsight):
        ...     @eproperty(key="output")
        ...     def last(self, value):
        ...         return value[:, -1]     # a view: edits in place reach the model
    """

    def __init__(
        self, read: _Callback | None = None, *, key: str | None = None, description: str = ""
    ) -> None:
        super().__init__(read, doc=description or None)
        self._read, self._key = read, key
        self.description = description
        self._written: _Callback | None = None
        self._put_back: _Callback | None = None

    def __call__(self, read: _Callback) -> eproperty:
        """Take the function, where the decorator was written with arguments."""
        self._read = read
        return self

    def postprocess(self, function: _Callback) -> eproperty:
        """Set what is done to a value that is assigned.

        Args:
            function: `function(self, value)` returns the value that is put in place.

        Returns:
            The eproperty, so that it decorates.
        """
        self._written = function
        return self

    def transform(self, function: _Callback) -> eproperty:
        """Set how a view that may have been edited is put back, once the block goes on.

        Args:
            function: `function(self, view, raw)` returns the value in the form of `raw`, which
                was served.

        Returns:
            The eproperty, so that it decorates.
        """
        self._put_back = function
        return self

    def provide(self, owner: Place, value: Any) -> Any:
        """Serve a value of one's own where it is made.

        Args:
            owner: the wrapper.
            value: the value.

        Returns:
            The value, or what a block has replaced it by.

        Raises:
            TypeError: the key is one of the module's, whose value its call serves.
        """
        place = self.place_in(owner)
        if not isinstance(place, ServedPlace):
            raise TypeError(
                f"provide() was called for the {self._key} of a module, which the call of the "
                "module serves; give the eproperty a key of its own"
            )
        return provided(place, value)

    def place_in(self, owner: Place) -> Place:
        """Return the place whose value it reads: the owner, or one of its own."""
        if self._key in (OUTPUT, INPUT, INPUTS):
            return owner
        return served_place(owner, self._key or "")

    def __set_name__(self, owner: Any, name: str) -> None:
        self._key = self._key or name
        known = [one for one in owner._own_values if one is not self]
        owner._own_values = (*known, self)

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        machine, place, port = self._asked(owner)
        raw = machine.request((requests.READ, place, port))
        view = raw if self._read is None else self._read(owner, raw)
        if self._put_back is not None:
            driver: Any = taps_now[id(place._module)].driver
            request = place, port
            driver.writes.put_back(
                WriteBack(driver, machine, request, self._put_back, (owner, view, raw))
            )
        return view

    def __set__(self, owner: Any, value: Any) -> None:
        machine, place, port = self._asked(owner)
        if self._written is not None:
            value = self._written(owner, value)
        machine.request((requests.WRITE, value, place, port))

    def _asked(self, owner: Ports) -> tuple[Machine, Place, str]:
        place = self.place_in(owner)
        port = INPUTS if self._key == INPUT else self._key if place is owner else OUTPUT
        return owner._machine(self._key or ""), place, str(port)
