"""A module inside another one is asked for after that one has returned.

A module's output is there when all that it is made of has run. Whoever waits for the output of a
layer, and then asks for the output of its MLP, asks for what has passed. This follows from the
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
    """Look for a child's access after an output of its parent."""
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
                    "or put it in an invoke of its own",
                    raises="OutOfOrderError",
                )
