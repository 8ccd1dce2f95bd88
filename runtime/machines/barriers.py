"""Barriers: a point that several invokes pass together."""

from __future__ import annotations

from .machine import Machine


class Barrier:
    """A meeting of a given number of machines.

    Attributes:
        participants: how many machines have to arrive before all of them go on.
        arrived: the machines that wait.
    """

    __slots__ = ("arrived", "participants")

    def __init__(self, participants: int) -> None:
        self.participants = participants
        self.arrived: list[Machine] = []
