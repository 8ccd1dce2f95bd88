"""Forms: the one tensor in a vLLM module's arguments or output that a program means.

    module            returns               a program sees      form
    decoder layer     (hidden, residual)    hidden + residual   SUM
    linear layer      (output, bias)        output              FIRST
    fused norm        (normed, sum)         normed              FIRST
    any other         output                output              WHOLE

The input of a module is found by the name of its parameter, since a decoder layer of vLLM takes the
positions before the hidden states.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch

_LINEAR = frozenset({"LinearBase", "BaseLinearLayerWithLoRA"})

SUM = "sum"
FIRST = "first"
WHOLE = "whole"

MAIN = ("hidden_states", "x", None)
"""Names of the parameter that is a module's input, in order of preference; None: the first."""


def argument_at(module: Any, names: tuple[str | None, ...], args: Any, kwargs: Any) -> Any:
    """Return the path in `(args, kwargs)` of the first of some arguments that is given.

    Args:
        module: the module that is called.
        names: names of parameters, in order of preference; None for the first argument.
        args: the positional arguments of the call.
        kwargs: the keyword arguments of the call.

    Returns:
        `(0, position)` or `(1, name)`; None if none of them is given.
    """
    known = _parameters(_class_of(module))
    for name in names:
        if name is None:
            return (0, 0) if args else ((1, next(iter(kwargs))) if kwargs else None)
        if name in kwargs:
            return (1, name)
        if name in known and known.index(name) < len(args):
            return (0, known.index(name))
    return None


def _class_of(module: Any) -> type:
    # `__class__` of a tapped module is its original class, `type()` is the tapped one
    cls: type = module.__class__
    return cls


@cache
def _parameters(cls: type) -> tuple[str, ...]:
    """List the parameters of a class's forward, without `self`.

    The forward of vLLM's `CustomOp` only dispatches, with `*args`; `forward_native` names them.
    """
    forward = getattr(cls, "forward_native", None) or getattr(cls, "forward", None)
    if forward is None:
        return ()
    return tuple(inspect.signature(forward).parameters)[1:]


def output_form(module: Any, output: Any) -> str:
    """Return the form of a module's output.

    A pair of tensors of one shape is `(hidden, residual)` if the forward has a parameter
    `residual`. A module without submodules that takes a residual is a fused norm: its first item
    is the normed value, and the second the sum.
    """
    if not isinstance(output, tuple) or len(output) != 2:
        return WHOLE
    first, second = output
    if not isinstance(first, torch.Tensor):
        return WHOLE
    if any(cls.__name__ in _LINEAR for cls in type(module).__mro__):
        return FIRST
    is_pair = isinstance(second, torch.Tensor) and second.shape == first.shape
    if not is_pair or "residual" not in _parameters(_class_of(module)):
        return WHOLE
    return SUM if module._modules else FIRST
