"""The blocks of the benchmark of prices, which differ by one part each."""

from __future__ import annotations

from typing import Any


def nothing(model: Any, x: Any) -> None:
    with model.trace(x):
        pass


def led_to(model: Any, x: Any) -> None:
    with model.trace(x):
        for i in range(24):
            layer = model.layers[i]


def first(model: Any, x: Any) -> None:
    with model.trace(x):
        hidden = model.layers[0].output


def read(model: Any, x: Any) -> None:
    with model.trace(x):
        for i in range(24):
            hidden = model.layers[i].output


def saved(model: Any, x: Any) -> Any:
    with model.trace(x):
        for i in range(24):
            hidden = model.layers[i].output.save()
    return hidden


def written(model: Any, x: Any) -> None:
    with model.trace(x):
        for i in range(24):
            hidden = model.layers[i].output
            model.layers[i].output = hidden
