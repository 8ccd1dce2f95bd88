"""The cases, as blocks: one text, run by nnsight_dsl (imported, and as a script) and by nnsight.

The library that runs them is whichever one the wrapper `model` comes from. `layers` is the list of
layers of the wrapped model.
"""

from __future__ import annotations

from typing import Any

import torch


def empty(model: Any, x: Any) -> None:
    with model.trace(x):
        pass


def read_1(model: Any, x: Any) -> Any:
    layers = model.layers
    with model.trace(x):
        hidden = layers[0].output.save()
    return hidden


def reads_12(model: Any, x: Any) -> Any:
    layers = model.layers
    with model.trace(x):
        h0 = layers[0].output.save()
        h1 = layers[1].output.save()
        h2 = layers[2].output.save()
        h3 = layers[3].output.save()
        h4 = layers[4].output.save()
        h5 = layers[5].output.save()
        h6 = layers[6].output.save()
        h7 = layers[7].output.save()
        h8 = layers[8].output.save()
        h9 = layers[9].output.save()
        h10 = layers[10].output.save()
        h11 = layers[11].output.save()
    return [h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11]


def reads_loop_12(model: Any, x: Any) -> Any:
    layers = model.layers
    with model.trace(x):
        found = [].save()
        for i in range(12):
            found.append(layers[i].output)
    return found


def edits_12(model: Any, x: Any) -> None:
    layers = model.layers
    with model.trace(x):
        for i in range(12):
            layers[i].output = layers[i].output * 2


def source_read_stack(model: Any, x: Any) -> Any:
    with model.trace(x):
        found = model.layers[3].source.torch_relu_0.output.save()
    return found


def source_read_gpt2(model: Any, x: Any) -> Any:
    with model.trace(x):
        found = model.transformer.h[3].attn.source.attention_interface_0.output.save()
    return found


def cache(model: Any, x: Any) -> Any:
    with model.trace(x) as tracer:
        kept = tracer.cache()
    return kept


def invokes(model: Any, prompts: Any) -> Any:
    layers = model.layers
    count = len(layers)
    with model.trace() as tracer:
        found = [].save()
        for i in range(len(prompts)):
            with tracer.invoke(prompts[i]):
                for j in range(count):
                    found.append(layers[j].output)
    return found


def generate_16(model: Any, x: Any) -> Any:
    layers = model.layers
    with model.generate(x, max_new_tokens=16, do_sample=False) as tracer:
        for _ in tracer.iter[0:16]:
            layers[3].output[:] = layers[3].output * 0.5


def backward_4(model: Any, x: Any) -> Any:
    layers = model.layers
    with model.trace(x):
        h2 = layers[2].output
        h5 = layers[5].output
        h8 = layers[8].output
        h11 = layers[11].output
        with h11.sum().backward():
            g11 = h11.grad.save()
            g8 = h8.grad.save()
            g5 = h5.grad.save()
            g2 = h2.grad.save()
    return torch.stack([g2, g5, g8, g11])
