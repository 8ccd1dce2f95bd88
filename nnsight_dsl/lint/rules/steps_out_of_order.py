"""A loop over steps begins at a step that an earlier loop has already passed.

A generation takes its steps in one order. After a loop has waited for step 2, another loop cannot
wait for step 1, because it is over.

Wrong:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3, min_new_tokens=3) as tracer:
        for step in tracer.iter[2]:
            late = model.lm_head.output.save()
        for step in tracer.iter[1]:
            early = model.lm_head.output.save()

Right:

    with model.generate("The Eiffel Tower is in", max_new_tokens=3, min_new_tokens=3) as tracer:
        for step in tracer.iter[1]:
            early = model.lm_head.output.save()
        for step in tracer.iter[2]:
            late = model.lm_head.output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..accesses import end_of
from ..analysis import File
from ..diagnostics import ERROR, Finding
from ..steps import run_of, step_loops

CODE = "NNS106"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Compare the step numbers of the loops of each block, if they are literals."""
    for machine in file.machines():
        run = run_of(machine.block)
        if run is None or run.kind != "generate":
            continue
        loops = step_loops(machine)
        for position, later in enumerate(loops):
            for earlier in loops[:position]:
                start = (later.node.lineno, later.node.col_offset)
                if earlier.may_break or end_of(earlier.node) > start or later.first is None:
                    continue
                is_sure = earlier.conditions.cover(later.conditions)
                if (
                    is_sure
                    and not later.conditions.is_handled
                    and later.first < (earlier.last or 0)
                ):
                    yield Finding(
                        later.header,
                        f"step {later.first} is over when this loop begins: the loop of line "
                        f"{file.line(earlier.node)} has waited for step {earlier.last}; loop over "
                        "steps in the order in which the generation takes them",
                        raises="OutOfOrderError",
                    )
                    break
