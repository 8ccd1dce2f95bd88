"""A loop asks for more steps than the generation takes.

`max_new_tokens` is the number of steps. A loop that goes beyond it waits for steps that never
happen; its last rounds do not run, and the warning about it comes after the run.

Wrong:

    with model.generate("The Eiffel Tower is in", max_new_tokens=2) as tracer:
        logits = [].save()
        for step in tracer.iter[:3]:
            logits.append(model.lm_head.output[:, -1])

Right:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3) as tracer:
        logits = [].save()
        for step in tracer.iter[:3]:
            logits.append(model.lm_head.output[:, -1])
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import WARNING, Finding
from ..steps import run_of, step_loops

CODE = "NNS501"
SEVERITY = WARNING


def check(file: File) -> Iterator[Finding]:
    """Compare the last step of each loop with `max_new_tokens`, if both are literals."""
    for machine in file.machines():
        run = run_of(machine.block)
        if run is None or run.kind != "generate" or run.call is None:
            continue
        steps = [one.value for one in run.call.keywords if one.arg == "max_new_tokens"]
        count = steps[0].value if steps and isinstance(steps[0], ast.Constant) else None
        if type(count) is not int:
            continue
        for loop in step_loops(machine):
            if loop.last is not None and loop.last >= count and not loop.may_break:
                yield Finding(
                    loop.header,
                    f"this loop waits for step {loop.last}, and max_new_tokens={count} ends the "
                    f"generation after step {count - 1}; loop over {count} steps, or generate more "
                    "tokens",
                )
