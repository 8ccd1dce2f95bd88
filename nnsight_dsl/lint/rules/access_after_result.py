"""A value of the model is asked for after the result of the run.

`tracer.result` and `model.generator.output` are the return value of the traced function. They are
available when everything else has run, so no value inside the model comes after them.

Wrong:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3) as tracer:
        tokens = tracer.result.save()
        logits = model.lm_head.output.save()

Right:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3) as tracer:
        logits = model.lm_head.output.save()
        tokens = tracer.result.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import ERROR, Finding
from ..steps import run_of

CODE = "NNS104"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find accesses of modules after a read of the run's result."""
    for machine in file.machines():
        run = run_of(machine.block)
        is_stepped = run is not None and run.kind == "generate"
        ends = [one for one in machine.accesses if machine.is_result(one) and one.verb == "read"]
        for access in machine.accesses:
            if not machine.is_of_module(access) or not machine.may_fail(access):
                continue
            for end in ends:
                if end.number < access.number and end.conditions.cover(access.conditions):
                    yield Finding(
                        access.node,
                        f"{access.location} is asked for after the result of the run (line "
                        f"{file.line(end.node)}), and comes before it; move this access up, or "
                        "put it in a separate invoke",
                        raises="GenerationEndedError" if is_stepped else "OutOfOrderError",
                    )
                    break
