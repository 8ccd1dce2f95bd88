"""A campaign: interrupts at random places of random kinds of runs, and what they leave behind."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nnsight_dsl.runtime.machines.ambient import restore_state, state_outside
from nnsight_dsl.runtime.machines.machine import set_current
from nnsight_dsl.runtime.tapping.tapped_class import taps_now
from tests.interrupts.injector import Injector, is_anywhere, is_ours
from tests.interrupts.kinds import KINDS, World, leaves
from tests.interrupts.state import state_of


@dataclass(frozen=True)
class Finding:
    """One interrupt that left something behind.

    Attributes:
        kind: what was run, and how.
        at: number of the place.
        where: the place.
        left: what was left.
    """

    kind: str
    at: int
    where: str
    left: str

    def __str__(self) -> str:
        return f"{self.kind} #{self.at} at {self.where}: {self.left}"


class Subject:
    """One kind of run, entered in one way, which is interrupted again and again."""

    def __init__(self, name: str, *, is_lowered: bool, is_first: bool, is_wide: bool) -> None:
        how = ("lowered" if is_lowered else "live", "first" if is_first else "later")
        self.name = " ".join((name, *how, *(["anywhere"] if is_wide else [])))
        self._kind, self._is_lowered, self._is_first = name, is_lowered, is_first
        self._is_counted = is_anywhere if is_wide else is_ours
        self._begin()

    def _begin(self) -> None:
        self._world = World(self._kind, is_lowered=self._is_lowered)
        self._expected = self._world.run()
        self._world.run()
        self._before = state_of(self._world.module, self._world.model)
        if self._is_first:
            self._world.rewrap()
        counter = Injector(None, self._is_counted)
        counter.run(self._world.run)
        self.count = counter.count

    def interrupt(self, at: int) -> Iterator[Finding]:
        """Interrupt a run at one place, and say what that left behind."""
        world = self._world
        if self._is_first:
            world.rewrap()
        injector = Injector(at, self._is_counted)
        came = "nothing"
        try:
            injector.run(world.run)
        except KeyboardInterrupt as error:
            came = type(error).__name__
        except BaseException as error:
            came = "".join(traceback.format_exception(error))
        found = []
        if injector.where is None:
            return
        if came != "KeyboardInterrupt":
            found.append(f"{came} came out")
        world.module.zero_grad()
        try:
            now = state_of(world.module, world.model)
            for key in self._before.keys() | now.keys():
                if self._before.get(key) != now.get(key):
                    found.append(f"{key}: {self._before.get(key)} -> {now.get(key)}")
            if not found and not _are_same(world.run(), self._expected):
                found.append("the next run has another result")
        except BaseException as error:
            found.append("".join(traceback.format_exception(error)))
        if found:
            yield Finding(self.name, at, injector.where, "; ".join(found))
            reset()
            self._begin()


def _are_same(one: Any, other: Any) -> bool:
    ours, theirs = [*leaves(one)], [*leaves(other)]
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def campaign(
    count: int, seed: int, kinds: Iterable[str] | None = None, *, every: bool = False
) -> Iterator[tuple[int, Finding | None]]:
    """Interrupt runs; yield the number of each try with what it left behind.

    Args:
        count: how many tries.
        seed: of the random numbers.
        kinds: names of kinds, all if left out.
        every: take the places of each subject one after the other, and not at random.
    """
    chance = random.Random(seed)
    names = [*(kinds or KINDS)]
    ways = [(True, False, False), (True, True, False), (False, False, False), (True, False, True)]
    subjects = [(name, way) for way in ways for name in names]
    share = max(1, -(-count // len(subjects)))
    number = 0
    for name, (is_lowered, is_first, is_wide) in subjects:
        if number >= count:
            return
        subject = Subject(name, is_lowered=is_lowered, is_first=is_first, is_wide=is_wide)
        places = range(1, subject.count + 1)
        for at in places if every else chance.sample(places, min(share, subject.count)):
            if number >= count:
                return
            number += 1
            found = list(subject.interrupt(at))
            yield number, found[0] if found else None


def reset() -> None:
    """Put right what a finding left wrong, so that it is found once."""
    taps_now.clear()
    restore_state(_AT_FIRST)
    torch.backends.mha.set_fastpath_enabled(True)
    torch._C._set_multithreading_enabled(True)
    set_current(None)
    if "save" in vars(torch.Tensor):
        del torch.Tensor.save


_AT_FIRST = state_outside()
