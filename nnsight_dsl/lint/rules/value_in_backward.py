"""A value of the forward is asked for in a backward pass.

The block of `with loss.backward():` runs along with the backward pass, which offers gradients only.
Read the values of the forward before it.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output
        with model.lm_head.output.sum().backward():
            grad = hidden.grad.save()
            first = model.transformer.h[0].output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        first = model.transformer.h[0].output.save()
        hidden = model.transformer.h[1].output
        with model.lm_head.output.sum().backward():
            grad = hidden.grad.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS405"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find ports of modules in the blocks of backward passes."""
    for machine in file.machines():
        if machine.block.kind != "backward":
            continue
        for access in machine.accesses:
            if machine.is_of_module(access) and machine.may_fail(access):
                yield Finding(
                    access.node,
                    f"Cannot request {access.location} in a backward pass, which has gradients "
                    "only; read it before 'with ....backward():', and its '.grad' inside",
                    raises="GradientError",
                )
