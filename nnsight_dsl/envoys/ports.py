"""Operations on a place in a block: read it, write it, skip it, count its steps."""

from __future__ import annotations

from typing import Any, TypeVar

from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.machine import Machine, current_machine
from nnsight_dsl.runtime.machines.steps import StepSpec
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.transforms import requests

PORTS = ("output", "input", "inputs")
_Ported = TypeVar("_Ported", bound="Ports")


class StepKey:
    """`tracer.iter[...]`: write an int, a slice or a list of ints between the brackets."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> StepSpec:
        return StepSpec(key)


class Ports(Place):
    """Base of the places of a model that users name: modules and operations."""

    def _outside(self, what: str, port: str) -> Exception:
        """Return the error for a use of a port or a method while no model runs."""
        return messages.outside(what)

    def _machine(self, name: str) -> Machine:
        machine = current_machine()
        if machine is None:
            raise towards_user(self._outside(name_of(self, name), name))
        return machine

    def _read(self, port: str) -> Any:
        return self._machine(port).request((requests.READ, self, port))

    def _write(self, port: str, value: Any) -> None:
        self._machine(port).request((requests.WRITE, value, self, port))

    @property
    def output(self) -> Any:
        """The value that the caller receives; assign to it to replace that.

        Raises:
            OutOfOrderError: it has already passed.
            NotCalledError: the module or operation was not called in this run.
            NotRunningError: no model is running.
        """
        return self._read("output")

    @property
    def input(self) -> Any:
        """The first argument of the call; assign to it to replace that."""
        return self._read("input")

    @property
    def inputs(self) -> Any:
        """All arguments of the call, `(args, kwargs)`; assign to it to replace them."""
        return self._read("inputs")

    def skip(self, value: Any) -> None:
        """Do not make the call in this run; the caller receives `value`.

        Args:
            value: replacement of the return value, of the same structure and shapes.

        Raises:
            OutOfOrderError: the call has already been made.

        Example:
            >>> with model.trace("Hello"):
            ...     model.transformer.h[1].skip(model.transformer.h[1].input)
        """
        self._machine("skip").request((requests.SKIP, self, value))

    def next(self: _Ported) -> _Ported:
        """Move this block to its next step.

        A block has one step for all places: `layer.next().output` is the layer's output in the
        step after the block's current one.

        Returns:
            This place.
        """
        self._machine("next").step += 1
        return self

    @property
    def iter(self) -> StepKey:
        """Steps to loop over, as `tracer.iter`."""
        return StepKey()

    def all(self) -> StepSpec:
        """All steps, as `tracer.all()`.

        Returns:
            The steps, to be looped over.
        """
        return StepSpec(slice(None))
