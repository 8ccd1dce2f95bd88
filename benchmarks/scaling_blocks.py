"""The blocks of the benchmark of growth."""

from __future__ import annotations

from typing import Any


def one_read(model: Any, x: Any) -> Any:
    layer = model.layers[0]
    with model.trace(x):
        hidden = layer.output.save()
    return hidden


def machines(model: Any, x: Any, count: int) -> Any:
    layers = model.layers
    with model.trace() as tracer:
        found = [].save()
        with tracer.invoke(x):
            found.append(layers[0].output)
        for i in range(1, count):
            with tracer.invoke():
                found.append(layers[i % 12].output)
    return found
