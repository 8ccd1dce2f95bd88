"""The call by which an invoke waits at a barrier."""

from __future__ import annotations

from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.machines.barriers import Barrier
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.transforms import requests


class BarrierCall:
    """What `tracer.barrier(n)` returns: call it in each of the `n` invokes that take part."""

    def __init__(self, barrier: Barrier) -> None:
        self._barrier = barrier

    def __call__(self) -> None:
        """Wait here until all participants have come.

        Raises:
            BarrierError: the run ended before they had, or this is called outside of an invoke.
        """
        machine = current_machine()
        if machine is None:
            raise messages.barrier_in_builder()
        machine.request((requests.MEET, self._barrier))
