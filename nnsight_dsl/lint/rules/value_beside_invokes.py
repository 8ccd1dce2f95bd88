"""A trace that consists of invokes asks for a value outside of them.

If a trace has invokes, the statements outside of them run before the model does, to collect the
invokes. Read a value of the model in an invoke; an invoke without an input sees all rows of the
batch.

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
    """Find accesses directly in a run that has invokes."""
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
