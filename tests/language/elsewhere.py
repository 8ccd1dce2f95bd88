"""Helpers in another module than the blocks that call them; they know models by duck typing."""

import contextlib


def read(layer):
    return layer.output


def double(layer):
    layer.output = layer.output * 2


def each(layers):
    for layer in layers:
        yield layer.output


class Accessor:
    """An accessor object as libraries have them: everything runs Python."""

    def __init__(self, layers):
        self._layers = layers

    def __getitem__(self, i):
        return self._layers[i].output

    def __getattr__(self, name):
        return self._layers[int(name.removeprefix("layer_"))].output

    def __iter__(self):
        return each(self._layers)

    def __len__(self):
        return len(self._layers)

    def __add__(self, other):
        return self[0] + other

    def __contains__(self, value):
        return any((value == seen).all() for seen in self)


class Probe:
    """One layer, read by a method and by a property."""

    def __init__(self, layer):
        self._layer = layer

    def hidden(self, factor=1):
        return self._layer.output * factor

    @property
    def norm(self):
        return self._layer.output.norm()

    @norm.setter
    def norm(self, value):
        self._layer.output = self._layer.output / self._layer.output.norm() * value


class Around:
    """A context manager that records, and reads a value on both ends."""

    def __init__(self, log, first, last):
        self._log, self._first, self._last = log, first, last

    def __enter__(self):
        self._log.append(("enter", number(self._first)))
        return self._first.output

    def __exit__(self, *error):
        # which of the two a name that is not bound raises depends on where the code stands
        kind = NameError if isinstance(error[1], NameError) else error[0]
        self._log.append(("exit", number(self._last), kind and kind.__name__))
        return error[0] is ValueError


@contextlib.contextmanager
def noted(log, name):
    log.append(f"enter {name}")
    try:
        yield name
    finally:
        log.append(f"exit {name}")


def number(layer):
    return layer.output.sum().item()


def twice(function):
    def decorated(*args, **kwargs):
        return function(*args, **kwargs) * 2

    return decorated
