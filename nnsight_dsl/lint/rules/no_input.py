"""A trace has neither an input nor an invoke with one.

The model runs on what `trace` or `generate` is given, or on what the invokes inside are given.
Without either there is nothing to run.

Wrong:

    with model.trace():
        logits = model.lm_head.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        logits = model.lm_head.output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding

CODE = "NNS401"
SEVERITY = ERROR

_OPTIONS = frozenset(
    "do_sample interventions log max_length max_new_tokens min_length min_new_tokens num_beams "
    "num_return_sequences remote repetition_penalty scan temperature top_k top_p trace use_cache "
    "validate".split()
)
"""Keywords that are no input of any model."""


def check(file: File) -> Iterator[Finding]:
    """Look at the arguments of each run, and of its invokes."""
    for machine in file.machines():
        block = machine.block
        if not block.is_run or block.call is None or machine.tracer_escapes():
            continue
        if may_have_input(block.call):
            continue
        invokes = [one for one in block.all_blocks() if one.kind == "invoke"]
        if any(one.call is not None and may_have_input(one.call) for one in invokes):
            continue
        if not invokes and not any(machine.is_of_module(one) for one in machine.accesses):
            continue
        if _opens_elsewhere(block):
            continue
        yield Finding(
            block.call,
            f"this {block.kind} has neither an input nor an invoke with one, so the model cannot "
            f"run; write {ast.unparse(block.call.func)}(input), or 'with tracer.invoke(input):' "
            "inside",
        )


def may_have_input(call: ast.Call) -> bool:
    """Tell whether the arguments of a call may hold an input."""
    return bool(call.args) or any(one.arg not in _OPTIONS for one in call.keywords)


def _opens_elsewhere(block: Block) -> bool:
    """Tell whether `.invoke` is mentioned otherwise than as the opening of a block found here."""
    openers = {one.call.func for one in block.all_blocks() if one.call is not None}
    return any(
        isinstance(node, ast.Attribute) and node.attr == "invoke" and node not in openers
        for node in block.tree.walk(block.node)
    )
