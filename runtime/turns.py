"""Turns: runs that share a module do not overlap.

Models that share a module, in whole or in part, form one *family* with one lock. Threads wait for
their turn; a run inside a run of the same family on the same thread could never get its turn, and
is an error.

The lock is an RLock, not because it is taken twice, but because it knows its owner: a run asks the
lock itself whether it has to release it, and no interrupt can make that answer stale. A lock that
this thread owns without being in a run was left by a run that was interrupted twice; the next run
finishes its cleanup.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from threading import Lock, RLock
from types import FrameType
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import greenlet
from torch import nn

from .errors import NestedRunError
from .record import Record

_Result = TypeVar("_Result")


class _Owned(Protocol):
    """A lock that knows its owner."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *error: object) -> None: ...
    def _is_owned(self) -> bool: ...


class _Run(Protocol):
    """A run whose changes can be undone."""

    def take_down(self) -> None: ...


class Family:
    """Models whose runs take turns. A family that was merged into another one points to it.

    Attributes:
        lock: held by the run whose turn it is.
        run: that run, set before it changes anything.
        merged_into: the family that this one is part of, if any.
        joined: families merged into this one whose runs may still be in progress.
    """

    __slots__ = ("joined", "lock", "merged_into", "run")

    def __init__(self) -> None:
        self.lock: _Owned = RLock()  # type: ignore[assignment]
        self.run: _Run | None = None
        self.merged_into: Family | None = None
        self.joined: tuple[Family, ...] = ()

    def leader(self) -> Family:
        """Return the family that this one is part of now, after any number of merges."""
        family = self
        while family.merged_into is not None:
            family = family.merged_into
        return family


class Turn:
    """The turn of one run, and the record of what it changes. Made by `in_turn`.

    Attributes:
        record: the run's changes.
    """

    __slots__ = ("_family", "_taken", "record")

    def __init__(self, family: Family) -> None:
        self._family = family
        self._taken: list[Family] = []
        self.record = Record()

    def begin(self) -> None:
        """Wait until the turn has come.

        Raises:
            NestedRunError: this thread is inside a run of the same family.
        """
        while True:
            leader = self._family.leader()
            for one in (leader, *leader.joined):
                if one.lock._is_owned():
                    _recover(one)
            self._taken.append(leader)
            leader.lock.acquire()
            if leader.merged_into is None:
                break
            # while this thread waited, the family became part of another one
            self._release()
        leader.run = self
        if leader.joined:
            self._wait_for_joined(leader)

    @staticmethod
    def _wait_for_joined(leader: Family) -> None:
        """Wait for runs that had begun before their families became part of this one."""
        over = leader.joined
        for one in over:
            with one.lock:
                pass
        with _registering:
            leader.joined = tuple(one for one in leader.joined if one not in over)

    def end(self) -> None:
        """Undo the run's changes, and release the turn.

        If it is interrupted, the caller calls it again, and it continues from there.
        """
        try:
            self.take_down()
        finally:
            self._release()

    def take_down(self) -> None:
        """Undo the run's changes."""
        self.record.undo()

    def _release(self) -> None:
        while self._taken:
            family = self._taken[-1]
            if family.lock._is_owned():
                family.run = None
                family.lock.release()
            self._taken.pop()


def in_turn(family: Family, run: Callable[..., _Result], *args: Any) -> _Result:
    """Wait for the turn of a family, run, undo what the run changed, and give up the turn.

    Args:
        family: the models that share a module with the one that runs.
        run: called with the turn, in whose `record` it notes its changes. No closure: the frame of
            one keeps what it refers to for as long as a traceback keeps the frame.
        args: further arguments of `run`.

    Returns:
        The value that `run` returned.

    Raises:
        NestedRunError: this thread is inside a run of the same family.
    """
    turn = Turn(family)
    try:
        turn.begin()
        return run(turn, *args)
    finally:
        try:
            turn.end()
        except BaseException:
            # an interrupt: `end` goes on from where it was
            turn.end()
            raise


def _recover(family: Family) -> None:
    """Finish a run of this thread that left its turn unfinished.

    Raises:
        NestedRunError: that run is still in progress.
    """
    if any(_is_in_turn(frame, family) for frame in _frames()):
        raise NestedRunError(
            "a run of this model is under way on this thread, and runs of one model take "
            "turns; end the outer trace first, or add an invoke to it"
        )
    if family.run is not None:
        family.run.take_down()
        family.run = None
    while family.lock._is_owned():
        family.lock.release()


def _frames() -> Iterator[FrameType]:
    """Iterate over the frames of this thread, including those suspended in parent greenlets."""
    current: Any = greenlet.getcurrent()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None or current is not None:
        while frame is not None:
            yield frame
            frame = frame.f_back
        current = current.parent
        frame = None if current is None else current.gr_frame


def _is_in_turn(frame: FrameType, family: Family) -> bool:
    """Return whether a frame belongs to a function that runs a model in a family's turn.

    Such a function keeps its `Turn`, or the family, in a local named `turn`.
    """
    if "turn" not in frame.f_code.co_varnames:
        return False
    turn = frame.f_locals.get("turn")
    return turn is family or (isinstance(turn, Turn) and family in turn._taken)


_families: WeakKeyDictionary[nn.Module, Family] = WeakKeyDictionary()
_registering = Lock()


def register_modules(root: nn.Module) -> Family:
    """Return the family of a model, merged with those of all modules it shares."""
    with _registering:
        modules = list(root.modules())
        known = {_families[module].leader() for module in modules if module in _families}
        leader = next(iter(known)) if known else Family()
        for family in known - {leader}:
            # In this order: a run of the family that begins in between takes the leader's turn, and
            # the leader's next run waits for one that had begun before.
            family.merged_into = leader
            leader.joined = (*leader.joined, family, *family.joined)
        for module in modules:
            _families[module] = leader
        return leader
