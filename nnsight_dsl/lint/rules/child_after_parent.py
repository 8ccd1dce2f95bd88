"""A value inside a module is asked for after the module has returned.

A module returns after all modules inside it have run. A block that waits for the output of a layer
and then asks for the output of its MLP asks for a value that has passed. This follows from the
paths alone, in every model.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output.save()
        inner = model.transformer.h[1].mlp.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        inner = model.transformer.h[1].mlp.output.save()
        hidden = model.transformer.h[1].output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..accesses import is_below
from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS102"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find accesses of a module after the output of one around it."""
    for machine in file.machines():
        seen = set()
        for first, second in machine.pairs():
            is_late = first.port == "output" and is_below(second.path or (), first.path or ())
            if is_late and second.number not in seen:
                seen.add(second.number)
                yield Finding(
                    second.node,
                    f"{second.location} can no longer come, since {first.place} has already "
                    f"returned (line {file.line(first.node)}); move this access before that line, "
                    "or put it in a separate invoke",
                    raises="OutOfOrderError",
                )
