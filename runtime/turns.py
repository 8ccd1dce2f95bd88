"""Turns: runs that share a module do not overlap.

Models that share a module, in whole or in part, form one *family* with one lock. Threads wait for
their turn; a run inside a run of the same family on the same thread could never get its turn, and
is an error.
"""

from __future__ import annotations

from threading import Lock, get_ident
from weakref import WeakKeyDictionary

from torch import nn

from .errors import NestedRunError


class Family:
    """Models whose runs take turns. A family that was merged into another one points to it.

    It is a context manager: entering it waits until the turn has come.

    Raises:
        NestedRunError: on entry, if this thread is inside a run of the same family.
    """

    __slots__ = ("lock", "merged_into", "owner")

    def __init__(self) -> None:
        self.lock = Lock()
        self.owner: int | None = None
        self.merged_into: Family | None = None

    def leader(self) -> Family:
        family = self
        while family.merged_into is not None:
            family = family.merged_into
        return family

    def __enter__(self) -> None:
        leader = self if self.merged_into is None else self.leader()
        thread = get_ident()
        if leader.owner == thread:
            raise NestedRunError(
                "a run of this model is under way on this thread, and runs of one model take "
                "turns; end the outer trace first, or add an invoke to it"
            )
        leader.lock.acquire()
        leader.owner = thread

    def __exit__(self, *error: object) -> None:
        # the same as on entry: a family whose run is under way stays the leader
        leader = self if self.merged_into is None else self.leader()
        leader.owner = None
        leader.lock.release()


_families: WeakKeyDictionary[nn.Module, Family] = WeakKeyDictionary()
_registering = Lock()


def register_modules(root: nn.Module) -> Family:
    """Return the family of a model, merged with those of all modules it shares."""
    with _registering:
        modules = list(root.modules())
        known = {_families[module].leader() for module in modules if module in _families}
        # a family whose run is under way stays the leader, so that its turn counts
        leader = min(known, key=lambda family: family.owner is None, default=None) or Family()
        for family in known - {leader}:
            family.merged_into = leader
        for module in modules:
            _families[module] = leader
        return leader
