"""Interventions that are pickled: at the level of a module, and with what they close over."""

import torch

from nnsight_dsl import NNsight, intervene
from tests.language.parts import Stack

FACTOR = 3


@intervene
def scaled(model, layer: int, factor: float = 2.0):
    """Scale what a layer returns."""
    model.layers[layer].output = model.layers[layer].output * factor * FACTOR
    return torch.relu(model.output)


@intervene
def shares(model, layer: int = FACTOR - 2, *, times: int = FACTOR):
    """Read a global in a comprehension only, and have defaults that were computed."""
    return sum([torch.relu(model.layers[i].output) * FACTOR for i in range(layer + 1)]) / times


@intervene
def descending(model, layer: int):
    """Call itself, and so be among its own globals."""
    hidden = model.layers[layer].output
    if layer < 2:
        hidden = descending(model, layer + 1)
    return hidden


def shifting(amount):
    @intervene
    def shifted(model, layer: int):
        model.layers[layer].output += amount
        return model.output

    return shifted


def new_input():
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def run_elsewhere(given, queue):
    """Run interventions in a process that has got them as pickles."""
    model, x = NNsight(Stack(11)), new_input()
    queue.put([one.run(model, x, **arguments).detach().numpy() for one, arguments in given])
