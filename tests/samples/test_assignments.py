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


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


def test_an_element_of_an_element_that_is_changed_too_late_is_an_error() -> None:
    model = NNsight(_Nested())
    with pytest.raises(errors.OutOfOrderError, match="after the value had passed"):
        with model.trace(torch.ones(2, 2)):
            model.first.output[0][1] += model.last.output.sum()
    with pytest.raises(errors.OutOfOrderError, match="after the value had passed"):
        with model.trace(torch.ones(2, 2)):
            model.first.output[int(model.last.output.numel() > 9)][1] -= 1


def test_indices_of_a_change_are_computed_once_and_in_order() -> None:
    model, calls, i = NNsight(_Nested()), [], 0

    def index(number: int) -> int:
        calls.append(number)
        return number

    with model.trace(torch.ones(2, 2)):
        model.first.output[index(1)][index(0)] += index(10)
        model.last.output[i][i] *= (i := 1) + 2
        changed = [model.first._module.weight, i].save()
        last = model.last.output.save()
    hidden = model.first._module(torch.ones(2, 2))
    hidden[1, 0] += 10
    expected = model.last._module(hidden)
    expected[0, 0] *= 3
    assert calls == [1, 0, 10] and torch.equal(last, expected) and changed[1] == 1
