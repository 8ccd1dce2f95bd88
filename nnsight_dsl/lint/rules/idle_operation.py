"""An operation of `.source` is in a branch that does not run.

A forward has branches for the settings of a config. `.source` lists the operations of all of them;
an operation in a branch that this model does not take never has a value. The lines that run are
known from a run of the model on one prompt (`--model`), so this is reported for traces of one
prompt only.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        attention = model.transformer.h[0].attn
        inner = attention.source.self__upcast_and_reordered_attn_0.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        attention = model.transformer.h[0].attn
        inner = attention.source.attention_interface_0.output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding
from .unknown_operation import operation_of

CODE = "NNS205"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Check whether the operation behind the first `.source` of each path has run."""
    if any("attn_implementation" in line for line in file.source.lines):
        # a model built with another attention than its config says takes other branches
        return
    for machine in file.machines():
        if not _is_of_one_prompt(machine.block):
            continue
        for access in machine.accesses:
            structure = file.structure(access.model)
            found = None if structure is None else operation_of(structure, access)
            if structure is None or found is None or not machine.may_fail(access):
                continue
            place, name = found
            if name in structure.modules[place].idle:
                yield Finding(
                    access.node,
                    f"{name} of {place or 'the model'} sits in a branch that this model does not "
                    "take; print its .source to see the operations of the other branches",
                )


def _is_of_one_prompt(block: Block) -> bool:
    """Return whether a trace has the recorded kind of input: one prompt, no other arguments."""
    call = block.call
    if block.kind not in ("trace", "scan") or call is None or call.keywords or block.invokes:
        return False
    prompt = call.args[0] if len(call.args) == 1 else None
    return isinstance(prompt, ast.Constant) and isinstance(prompt.value, str)
