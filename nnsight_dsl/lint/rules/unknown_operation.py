"""An operation of `.source` does not exist.

`module.source` has the operations of the module's forward under names derived from its code: a call
of `self.c_proj` is `self_c_proj_0`. `print(model.transformer.h[0].attn.source)` shows them.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[0].attn.source.self_c_porj_0.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[0].attn.source.self_c_proj_0.output.save()
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ..accesses import SOURCE, Access
from ..analysis import File
from ..diagnostics import ERROR, Finding
from ..model_facts import Structure

CODE = "NNS202"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Look up the operation after the first `.source` of each path."""
    for machine in file.machines():
        for access in machine.accesses:
            structure = file.structure(access.model)
            if structure is None or not machine.may_fail(access):
                continue
            found = operation_of(structure, access)
            if found is None:
                continue
            place, name = found
            known = structure.modules[place].operations
            if known and name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                advice = (
                    f"did you mean {' or '.join(map(repr, near))}?"
                    if near
                    else f"it has {', '.join(map(repr, known[:12]))}"
                )
                yield Finding(
                    access.node,
                    f"{place or 'the model'} has no operation {name!r}; {advice} (print its "
                    ".source to see all)",
                )


def operation_of(structure: Structure, access: Access) -> tuple[str, str] | None:
    """Return the module and the operation named after the first `.source` of an access's path."""
    path = access.path or ()
    if SOURCE not in path or path.index(SOURCE) + 1 >= len(path):
        return None
    position = path.index(SOURCE)
    place, name = structure.place(path[:position]), path[position + 1]
    return (place, name) if place is not None and isinstance(name, str) else None
