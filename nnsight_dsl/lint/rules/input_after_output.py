"""A module's input is asked for, or the module is skipped, after its output.

In a call of a module its arguments come first, then its output. Once the output has come, the
arguments have passed, and it is too late to skip the module.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        after = model.transformer.h[1].output.save()
        before = model.transformer.h[1].input.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        before = model.transformer.h[1].input.save()
        after = model.transformer.h[1].output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS103"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find inputs and skips after the output of the same module."""
    for machine in file.machines():
        seen = set()
        for first, second in machine.pairs():
            is_late = first.port == "output" and second.is_early and first.path == second.path
            if is_late and second.number not in seen:
                seen.add(second.number)
                yield Finding(
                    second.node,
                    f"{second.location} has already passed: the output of line "
                    f"{file.line(first.node)} comes after it; move this access up, before that "
                    "line, or put it in a separate invoke",
                    raises="OutOfOrderError",
                )
