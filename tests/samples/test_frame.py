"""The frame around a block: only names that leave the block are written to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight

X = torch.ones(1, 2)
NET = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
MODEL = NNsight(NET)


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("has_target", [False, True])
def test_a_name_that_another_thread_counts_in_loses_nothing(
    switching: None, has_target: bool
) -> None:
    n, done, counted = 0, False, [0]

    def count() -> None:
        nonlocal n
        while not done:
            n += 1
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(500):
            if has_target:
                with MODEL.trace(X) as tracer:
                    hidden = MODEL[0].output.save()
            else:
                with MODEL.trace(X):
                    hidden = MODEL[0].output.save()
    finally:
        done = True
        thread.join()
    assert n == counted[0]


class Last:
    """Something that is done when nothing refers to it any more."""

    def __init__(self, action: Any) -> None:
        self._action = action

    def __del__(self) -> None:
        self._action()


def test_a_name_that_is_bound_while_another_is_written_keeps_its_value() -> None:
    n = 0

    def bind() -> None:
        nonlocal n
        n = 1

    hidden: Any = Last(bind)
    with MODEL.trace(X):
        hidden = MODEL[0].output.save()
    assert hidden.equal(NET[0](X))
    assert n == 1


def test_the_copy_that_the_user_has_of_the_names_stays_whole() -> None:
    kept = locals()
    first = 1
    with MODEL.trace(X):
        hidden = MODEL[0].output.save()
    if sys.version_info < (3, 13):
        # it is the frame's own copy
        assert kept["first"] == first
        assert kept["hidden"] is hidden


def test_names_of_closures_and_of_the_function_leave_a_block() -> None:
    outer = 0

    def user() -> Any:
        nonlocal outer
        with MODEL.trace(X) as tracer:
            hidden = MODEL[0].output.save()
            outer = MODEL[1].output.sum().save()
        return hidden, tracer, lambda: hidden

    hidden, tracer, read = user()
    assert hidden.equal(NET[0](X))
    assert read() is hidden
    assert tracer is not None
    assert torch.equal(torch.as_tensor(outer), NET(X).sum())


def test_an_error_in_a_block_has_nothing_of_ours_in_its_context() -> None:
    with pytest.raises(AttributeError) as caught:
        try:
            raise KeyError("first")
        except KeyError:
            with MODEL.trace(X):
                MODEL[0].output.nothing  # noqa: B018
    context = caught.value.__context__
    assert isinstance(context, KeyError)
    assert context.__context__ is None


def test_an_error_of_struct_in_a_block_is_the_users() -> None:
    import struct

    with pytest.raises(struct.error), MODEL.trace(X):
        struct.pack("b", 1000)
    with pytest.raises(ValueError, match="late") as caught, MODEL.trace(X):
        try:
            struct.pack("b", 1000)
        except struct.error:
            raise ValueError("late")  # noqa: B904
    assert isinstance(caught.value.__context__, struct.error)


COVERED = """\
import torch
from torch import nn
from nnsight_dsl import NNsight

model = NNsight(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
x = torch.ones(1, 2)

def inner():
    with model.trace(x):
        h = model[0].output.save()
    return h

def middle():
    h = inner()
    d = 2
    return h

def outer():
    for i in range(2):
        h = middle()
        g = 2
    try:
        with model.trace(x) as t:
            if x is None:
                m = 5
            h = model[0].output
            h.nothing
    except AttributeError:
        n = 6
    o = 7

outer()
p = 8
with model.trace(x):
    q = 9
r = 10
"""


@pytest.mark.parametrize(
    ("core", "options"), [("ctrace", ("--branch",)), ("pytrace", ())], ids=["in C", "in Python"]
)
def test_coverage_sees_the_lines_of_the_callers_behind_a_block(
    tmp_path: Path, core: str, options: tuple[str, ...]
) -> None:
    (tmp_path / "covered.py").write_text(COVERED)
    data = f"--data-file={tmp_path / 'data'}"
    for command in (
        ("run", data, "--include=*/covered.py", *options, "covered.py"),
        ("json", data, "-o", "found.json"),
    ):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "coverage", *command],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            env={**os.environ, "COVERAGE_CORE": core},
        )
    (found,) = json.loads((tmp_path / "found.json").read_text())["files"].values()
    assert found["missing_lines"] == [25]
