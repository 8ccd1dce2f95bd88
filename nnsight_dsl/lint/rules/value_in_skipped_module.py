"""A value is asked for inside a module that the same block skips.

A module that is skipped is not called, so no value inside it is computed. Where other invokes run
it, it is called for their rows, and the invoke that skips it sees nothing of that.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        model.transformer.h[1].skip(model.transformer.h[0].output)
        inner = model.transformer.h[1].mlp.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        model.transformer.h[1].skip(model.transformer.h[0].output)
        hidden = model.transformer.h[1].output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..accesses import SKIP, is_below
from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding

CODE = "NNS407"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find accesses inside a module that the block skips."""
    for machine in file.machines():
        if not _is_of_run(machine.block):
            continue
        seen = set()
        for first, second in machine.pairs():
            is_inside = first.verb == SKIP and is_below(second.path or (), first.path or ())
            if is_inside and second.number not in seen:
                seen.add(second.number)
                yield Finding(
                    second.node,
                    f"{second.location} is never computed, since line {file.line(first.node)} "
                    f"skips {first.place}; ask for it in a run that does not skip {first.place}",
                    raises="NotCalledError",
                )


def _is_of_run(block: Block) -> bool:
    """Return whether a block is one of a run; an invoke sees nothing of what it skips itself."""
    return not block.invokes if block.is_run else block.kind == "invoke"
