"""Gradients are asked for in the order of the forward, but they come in reverse.

A backward pass goes from the loss to the input, so the gradient of the value that was computed last
comes first. Ask for the gradients of two values in the reverse of the order in which the block
read the values.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        early = model.transformer.h[0].output
        late = model.transformer.h[1].output
        with model.lm_head.output.sum().backward():
            early_grad = early.grad.save()
            late_grad = late.grad.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        early = model.transformer.h[0].output
        late = model.transformer.h[1].output
        with model.lm_head.output.sum().backward():
            late_grad = late.grad.save()
            early_grad = early.grad.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..accesses import Access, Machine
from ..analysis import File
from ..diagnostics import ERROR, Finding
from ..held_values import read_of

CODE = "NNS107"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Compare the order of gradients with the order in which their tensors were read."""
    for machine in file.machines():
        around = machine.block.parent
        if machine.block.kind != "backward" or around is None:
            continue
        forward = file.machine(around)
        grads = [one for one in machine.accesses if one.port == "grad"]
        for position, later in enumerate(grads):
            if any(
                _is_before(forward, earlier, later) and earlier.conditions.cover(later.conditions)
                for earlier in grads[:position]
            ) and machine.may_fail(later):
                yield Finding(
                    later.node,
                    f"{ast.unparse(later.node)} has already passed: gradients come in the reverse "
                    "of the order in which the values were computed; ask for it before the "
                    "gradients of earlier values",
                )


def _is_before(forward: Machine, first: Access, second: Access) -> bool:
    """Return whether the tensor of the first gradient was computed before that of the second."""
    one, other = (read_of(forward, each.node.value) for each in (first, second))
    if one is None or other is None or one.path == other.path:
        return False
    return forward.follows(one, other)
