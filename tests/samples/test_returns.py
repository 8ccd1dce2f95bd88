"""`return` without a value, in a block that is the last statement of its function."""

from __future__ import annotations

import ast
import textwrap
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, errors
from nnsight_dsl.transforms.source.unsupported import is_last_of

X = torch.ones(1, 2)
NET = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
MODEL = NNsight(NET)


def test_an_early_return_ends_the_block_and_the_forward_goes_on() -> None:
    seen: list[Any] = []
    calls: list[int] = []
    handle = NET[1].register_forward_hook(lambda *_: calls.append(1))

    def user(is_early: bool) -> None:
        with MODEL.trace(X) as tracer:
            seen.append(MODEL[0].output)
            if is_early:
                return
            seen.append(MODEL[1].output)

    user(True)
    user(False)
    handle.remove()
    assert [len(seen), len(calls)] == [3, 2]
    assert seen[1].equal(NET[0](X))
    assert seen[2].equal(NET(X))


def test_names_that_were_saved_before_a_return_leave() -> None:
    def user() -> Any:
        hidden = None

        def inner() -> None:
            nonlocal hidden
            with MODEL.trace(X):
                hidden = MODEL[0].output.save()
                return

        inner()
        return hidden

    assert user().equal(NET[0](X))


def test_a_return_before_the_invokes_leaves_them_out() -> None:
    seen: list[Any] = []

    def user(is_early: bool) -> None:
        with MODEL.trace() as tracer:
            with tracer.invoke(X):
                seen.append(MODEL[0].output)
            if is_early:
                return
            with tracer.invoke():
                seen.append(MODEL[1].output)

    user(True)
    assert len(seen) == 1
    user(False)
    assert len(seen) == 3


def test_a_return_with_a_value_is_refused() -> None:
    def user() -> Any:
        with MODEL.trace(X):
            return MODEL[0].output  # noqa: NNS801

    with pytest.raises(errors.UnsupportedSyntaxError, match="return it after the block"):
        user()


def test_a_return_in_an_invoke_is_refused() -> None:
    def user() -> None:
        with MODEL.trace() as tracer, tracer.invoke(X):
            MODEL[0].output.save()
            return

    with pytest.raises(errors.UnsupportedSyntaxError, match="under an 'if'"):
        user()


@pytest.mark.parametrize(
    ("is_last", "body"),
    [
        (True, "BLOCK"),
        (True, "if a:\n    BLOCK\nelse:\n    b"),
        (True, "if a:\n    pass\nelif b:\n    BLOCK"),
        (True, "with a:\n    BLOCK"),
        (True, "try:\n    BLOCK\nfinally:\n    b"),
        (True, "try:\n    BLOCK\nexcept a:\n    b"),
        (True, "try:\n    a\nexcept b:\n    BLOCK"),
        (True, "try:\n    a\nexcept b:\n    c\nelse:\n    BLOCK"),
        (True, "match a:\n    case 1:\n        BLOCK\n    case _:\n        b"),
        (False, "BLOCK\na"),
        (False, "if a:\n    BLOCK\nb"),
        (False, "if a:\n    BLOCK\n    b"),
        (False, "for a in b:\n    BLOCK"),
        (False, "while a:\n    BLOCK"),
        (False, "try:\n    BLOCK\nexcept a:\n    b\nelse:\n    c"),
        (False, "try:\n    a\nfinally:\n    BLOCK"),
        (False, "def other():\n    BLOCK"),
        (False, "class Other:\n    BLOCK"),
    ],
)
def test_which_statements_are_the_last_of_a_function(is_last: bool, body: str) -> None:
    text = body.replace("BLOCK", "with block: pass")
    function = ast.parse(f"def f():\n{textwrap.indent(text, '    ')}").body[0]
    (block,) = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.With) and ast.unparse(node).startswith("with block")
    ]
    assert is_last_of(function, block) is is_last
