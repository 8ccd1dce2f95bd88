"""A path does not exist in the model.

The paths of a model are the names of its modules, which differ between architectures;
`print(model)` shows them. Other attributes of modules are known to the linter as well, and so are
the names that the file itself gives to modules.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].mpl.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].mlp.output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..accesses import Access
from ..analysis import File
from ..diagnostics import ERROR, Finding
from ..model_facts import Structure

CODE = "NNS201"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Look up each path that the text determines among the modules of the model."""
    for machine in file.machines():
        for access in machine.accesses:
            structure = file.structure(access.model)
            if structure is None or not machine.is_of_module(access):
                continue
            if not machine.may_fail(access):
                continue
            absent = structure.missing(access.path or ())
            if absent is not None:
                yield Finding(access.node, _message(structure, access, *absent))


def _message(structure: Structure, access: Access, place: str, item: str | int) -> str:
    where = place or "the model"
    if isinstance(item, int):
        count = len(structure.modules[place].children)
        return (
            f"{where} has {count} modules, and number {item} is asked for; they are numbered from "
            f"0 to {count - 1}"
        )
    near = structure.near(place, item)
    known = ", ".join(map(repr, structure.modules[place].children[:12])) or "no modules"
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {known}"
    return f"{where} has no module or attribute {item!r}; {advice}"
