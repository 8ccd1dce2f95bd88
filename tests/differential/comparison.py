"""Comparing what a program does by the package with what it does by plain hooks."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from typing import Any

from nnsight_dsl import CONFIG
from tests.differential.entries import Outcome, Package, Plain
from tests.differential.programs import Program


def difference(program: Program) -> str | None:
    """Return how a program differs from what it means, None if it does not."""
    linted, CONFIG.APP.LINT = CONFIG.APP.LINT, "off"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = Plain(program).run()
            except BaseException as error:
                error.add_note(f"the interpreter failed on seed {program.seed}\n{program.text()}")
                raise
            try:
                found = Package(program).run()
            except Exception as error:
                return f"the program cannot be entered: {type(error).__name__}: {error}"
    finally:
        CONFIG.APP.LINT = linted
    if len(found) != len(expected):
        return f"{len(found)} entries instead of {len(expected)}"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if program.entry in ("carried", "intervention in a block") and other.error == (
            "WriteShapeError",
        ):
            # the line is that of the call in the block
            one, other = replace(one, line=None), replace(other, line=None)
        if sys.version_info < (3, 12) and (one.error or ("",))[0] == "NameError":
            # CPython 3.11 has the line before, where it has joined two instructions to one
            one, other = replace(one, line=None), replace(other, line=None)
        said = _difference(one, other)
        if said is not None:
            return f"entry {number} ({program.events[number]}): {said}"
    return None


def differs_alike(said: str, program: Program) -> bool:
    """Tell whether a program has a difference of the same kind as another one."""
    return kind_of(difference(program)) == kind_of(said)


def kind_of(said: str | None) -> str:
    """Name the kind of a difference."""
    lines = (said or "").splitlines()
    about = lines[0].rpartition(": ")[2] if lines else ""
    return "\n".join([about, *lines[1:]]) if about == "error" else about.split(" ")[-1]


def _difference(found: Outcome, expected: Outcome) -> str | None:
    for about in ("error", "line", "log"):
        one, other = getattr(found, about), getattr(expected, about)
        if not same(one, other):
            return f"{about}\n  {one!r}\ninstead of\n  {other!r}"
    names = found.names.keys() | expected.names.keys()
    for name in sorted(names):
        one = found.names.get(name, "<not bound>")
        other = expected.names.get(name, "<not bound>")
        if not same(one, other):
            return f"{name} is\n  {one!r}\ninstead of\n  {other!r}"
    return None


def same(one: Any, other: Any) -> bool:
    """Compare what was kept, with a NaN being the same as another."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)
