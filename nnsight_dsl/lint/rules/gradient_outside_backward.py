"""A gradient is asked for outside of a backward pass.

A value inside the model has no gradient before a backward pass, and keeps none afterwards. Read
`.grad` in the block of `with loss.backward():`; anywhere else it is None.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output
        grad = hidden.grad.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output
        with model.lm_head.output.sum().backward():
            grad = hidden.grad.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding
from ..held_values import called_method, read_of
from ..steps import run_of

CODE = "NNS406"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find reads of `.grad` of unchanged model values in runs without a backward pass."""
    for machine in file.machines():
        run = run_of(machine.block)
        if run is None or machine.block.kind == "backward" or _goes_back(run):
            continue
        for access in machine.accesses:
            value = access.node.value
            if access.port != "grad" or access.verb != "read" or not machine.may_fail(access):
                continue
            if isinstance(value, ast.Name) and read_of(machine, value) is not None:
                yield Finding(
                    access.node,
                    f"{value.id}.grad is None outside of a backward pass; read it inside 'with "
                    "loss.backward():'",
                )


def _goes_back(run: Block) -> bool:
    return any(
        isinstance(below, ast.Call) and called_method(below) in ("backward", "retain_grad")
        for below in run.tree.walk(run.node)
    )
