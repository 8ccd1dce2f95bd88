"""A trace that consists of invokes asks for a value of its own, outside of them.

Where a trace has invokes, its own statements only collect them, before the model runs. A value of
the model is read in an invoke; one without an input sees the rows of all.

Wrong:

    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            hidden = model.transformer.h[1].output.save()
        logits = model.lm_head.output.save()

Right:

    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            hidden = model.transformer.h[1].output.save()
        with tracer.invoke():
            logits = model.lm_head.output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS403"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Look for accesses directly in a run that has invokes."""
    for machine in file.machines():
        if not machine.block.is_run or not machine.block.invokes:
            continue
        for access in machine.accesses:
            is_value = machine.is_of_module(access) or machine.is_result(access)
            if is_value and machine.may_fail(access):
                yield Finding(
                    access.node,
                    f"{access.location} is asked for in a trace that consists of invokes, and "
                    "outside of them; move the access into an invoke ('with tracer.invoke():' "
                    "sees all rows)",
                    raises="InvokeError",
                )
