"""Assignments in a block mean what they mean at the top level of a module."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, errors

X = torch.ones(1, 2)
MODEL = NNsight(nn.Sequential(nn.Linear(2, 2)))


@pytest.fixture
def filename() -> Iterator[str]:
    yield "<assignments>"
    linecache.cache.pop("<assignments>", None)


def names_after(text: str, filename: str) -> dict[str, Any]:
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    names: dict[str, Any] = {"model": MODEL, "X": X, "x": 5, "y": 6, "d": {}}
    exec(compile(text, filename, "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize(
    "statement",
    [
        "x, x = 1, x",
        "x, y, x = 1, 2, x",
        "[x, x] = x, 7",
        "x, x, x = 1, 2, x",
        "x, x = [1, x]",
        "y = x, x = 1, x",
        "x = x; x, x = x, 1",
        "x, (x, y) = 1, (x, y)",
        "x, *x = 1, x",
        "x, y = y, x",
        "x: int = x + 1",
        "d['k'], d['k'] = 1, x",
    ],
)
def test_a_statement_binds_the_same_names_in_a_block(statement: str, filename: str) -> None:
    kept = "found = [x, y, d]"
    plain = names_after(f"{statement}\n{kept}\n", filename)
    block = f"with model.trace(X):\n    {statement}\n    {kept}\n    found.save()\n"
    assert names_after(block, filename)["found"] == plain["found"]


def test_an_annotation_of_a_name_in_parentheses_is_refused(filename: str) -> None:
    with pytest.raises(errors.UnsupportedSyntaxError, match="without parentheses") as caught:
        names_after("with model.trace(X):\n    (x): int = 1\n", filename)
    assert caught.value.lineno == 2
