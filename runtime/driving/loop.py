"""The loop in which a machine is resumed and its requests are answered.

    request = machine.advance(answer)       # the block runs up to its next access
    answer = self.answer(machine, request)  # a value, or PARKED: the machine waits for it

It serves forward and backward passes alike; the kind of run decides how a request is answered. An
error raised by an answer is raised in the machine, at the user's line. `inlining.py` has the same
loop with the common cases of a forward inlined, and a property test holds it to this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from nnsight_dsl.runtime.errors import RunAborted
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.transforms.requests import Request

from .foreign import find_foreign


class _Parked:
    """The type of `PARKED`, the one answer that leaves the machine waiting."""


PARKED = _Parked()


class Loop:
    """A run of machines.

    Attributes:
        failure: the error that a machine or the model has raised.
        ready: machines to resume next, each with its answer.
    """

    failure: BaseException | None = None
    ready: Sequence[tuple[Machine, Any]] = ()

    def drive(
        self,
        machine: Machine,
        answer: Any = None,
        error: BaseException | None = None,
        request: Request | None = None,
    ) -> None:
        """Resume a machine, and answer its requests until it waits or is done.

        Args:
            machine: the machine.
            answer: the answer to its last request.
            error: raised in it in place of an answer.
            request: the request it waits with, to be answered first, now that its value is there.
        """
        while True:
            if request is None:
                machine.wake()
                try:
                    request = machine.throw(error) if error is not None else machine.advance(answer)
                    error = None
                    request = self.for_this_run(machine, request)
                except BaseException as raised:
                    self._fail(machine, raised)
            try:
                answer = self.answer(machine, request)
            except RunAborted:
                raise
            except BaseException as raised:
                clean(raised)
                error, request = raised, None
                continue
            request = None
            if answer is PARKED:
                if not self.ready:
                    return
                machine, answer = self._next_ready()

    def answer(self, machine: Machine, request: Request) -> Any:
        """Return the answer to a request, PARKED if the machine has to wait for it."""
        raise NotImplementedError

    def for_this_run(self, machine: Machine, request: Request) -> Request:
        """Answer requests on objects that belong to no model; return the first other request.

        The plain Python operation that such a request means is carried, so that it can wait for
        values of this run, too.
        """
        while (foreign := find_foreign(request)) is not None:
            request = machine.call(*foreign)
        return request

    def _next_ready(self) -> tuple[Machine, Any]:
        """Pop the first machine, by order, that a barrier or a name has released."""
        first, *self.ready = sorted(self.ready, key=lambda ready: ready[0].order)
        return first

    def _fail(self, machine: Machine, raised: BaseException) -> NoReturn:
        """End the run after a machine has raised; values that the machine had saved are kept."""
        self.failure = machine.fail(raised)
        raise RunAborted
