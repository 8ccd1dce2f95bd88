"""A value is asked for after one that the model computes later.

A block is served in the order in which the model runs: once it has waited for the fifth layer, the
values of the second are gone. The order is that of a run of the model on fake tensors (`--model`).

Wrong:

    with model.trace("The Eiffel Tower is in"):
        late = model.transformer.h[2].output.save()
        early = model.transformer.h[0].output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        early = model.transformer.h[0].output.save()
        late = model.transformer.h[2].output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..accesses import Access, is_below
from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS101"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Compare the ticks at which pairs of accesses are served."""
    for machine in file.machines():
        if machine.block.kind == "backward":
            continue
        seen = set()
        for first, second in machine.pairs():
            if second.number in seen or _follows_from_containment(first, second):
                continue
            before, after = _time(file, first), _time(file, second)
            if before is not None and after is not None and before > after:
                seen.add(second.number)
                yield Finding(
                    second.node,
                    f"{second.location} has already passed: the model computes it before "
                    f"{first.location} of line {file.line(first.node)}; move this access up, or "
                    "put it in a separate invoke",
                )


def _follows_from_containment(first: Access, second: Access) -> bool:
    """Return whether NNS102 or NNS103 reports the same, without facts about the model."""
    paths = first.path or (), second.path or ()
    return first.port == "output" and (paths[0] == paths[1] or is_below(paths[1], paths[0]))


def _time(file: File, access: Access) -> int | None:
    """Return the tick at which an access is served, None if it is unknown."""
    found = file.place(access)
    if found is None:
        return None
    structure, place = found
    if len(structure.modules[place].visits) > 1:
        # the module is called more than once, and any of the visits may be meant
        return None
    return structure.begins(place) if access.is_early else structure.ends(place)
