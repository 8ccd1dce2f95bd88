"""A value of the model is asked for after a loop over all steps.

A loop over `tracer.iter[:]` (or `tracer.all()`) ends when the generation does. The statements after
it run when the model will not be called again, so only the result of the run is still to come.
After a loop over some of the steps an access means the first step again, which is over as well,
unless the module runs after the steps, as the image decoder of a pipeline of diffusers does.

Wrong:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3) as tracer:
        hidden = [].save()
        for step in tracer.iter[:]:
            hidden.append(model.transformer.h[1].output)
        logits = model.lm_head.output.save()

Right:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3) as tracer:
        hidden = [].save()
        for step in tracer.iter[:]:
            hidden.append(model.transformer.h[1].output)
            logits = model.lm_head.output.save()
        tokens = tracer.result.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..accesses import end_of
from ..analysis import File
from ..diagnostics import ERROR, Finding
from ..steps import run_of, step_loops

CODE = "NNS105"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find accesses after a loop over all steps, or after one over later steps."""
    for machine in file.machines():
        run = run_of(machine.block)
        if run is None:
            continue
        is_stepped = run.kind == "generate"
        loops = [loop for loop in step_loops(machine) if not loop.may_break]
        for access in machine.accesses:
            if not machine.is_of_module(access) or not machine.may_fail(access):
                continue
            if access.step is None or access.step[0]:
                continue
            for loop in loops:
                is_behind = end_of(loop.node) <= (access.node.lineno, access.node.col_offset)
                if not is_behind or not loop.conditions.cover(access.conditions):
                    continue
                is_over = loop.is_open or (
                    is_stepped
                    and (loop.last or 0) >= 1
                    and access.step[1] == 0
                    and not file.is_beside_steps(access.path)
                )
                if is_over:
                    yield Finding(
                        access.node,
                        _message(access.location, loop.is_open),
                        raises="GenerationEndedError"
                        if is_stepped and loop.is_open
                        else "OutOfOrderError",
                    )
                    break


def _message(location: str, is_open: bool) -> str:
    if is_open:
        return (
            f"{location} is asked for behind a loop over all steps, which ends with the run; read "
            "it inside the loop, before the loop, or in another invoke"
        )
    return (
        f"{location} behind a loop over steps means the first step, which has already passed; "
        "move this access before the loop, or into it"
    )
