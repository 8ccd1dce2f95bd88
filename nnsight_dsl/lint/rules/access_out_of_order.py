"""A value is asked for after one that the model computes later.

A block follows the model: once the fifth layer has been waited for, the second one is gone. The
order is that of a run of the model, recorded under fake tensors (`--model`).

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
    """Compare the times at which two accesses are served."""
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
                    "put it in an invoke of its own",
                )


def _follows_from_containment(first: Access, second: Access) -> bool:
    """Return whether another rule says the same, without knowing the model."""
    paths = first.path or (), second.path or ()
    return first.port == "output" and (paths[0] == paths[1] or is_below(paths[1], paths[0]))


def _time(file: File, access: Access) -> int | None:
    """Return when an access is served, None where that cannot be told."""
    found = file.place(access)
    if found is None:
        return None
    structure, place = found
    if len(structure.modules[place].visits) > 1:
        # which visit is meant depends on the loop around the access
        return None
    return structure.begins(place) if access.is_early else structure.ends(place)
