"""A trace has an input and also contains invokes with inputs.

An input given to `trace` makes an implicit invoke. If there are explicit ones as well, it is
ambiguous which rows of the batch the statements outside of them are about.

Wrong:

    with model.trace("The Eiffel Tower is in") as tracer:
        with tracer.invoke("The Colosseum is in"):
            logits = model.lm_head.output.save()

Right:

    with model.trace() as tracer:
        with tracer.invoke("The Colosseum is in"):
            logits = model.lm_head.output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS404"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find runs that have an input and an invoke with an input."""
    for block in file.all_blocks():
        if not block.is_run or block.call is None or not block.call.args:
            continue
        for invoke in block.invokes:
            conditions = file.tree.conditions(invoke.node, block.node)
            if invoke.call is not None and invoke.call.args and conditions.always:
                yield Finding(
                    block.call,
                    "this trace has its own input, and the invoke of line "
                    f"{file.line(invoke.node)} has one; give the input to an invoke instead: 'with "
                    "model.trace() as tracer:'",
                )
                break
