"""`.output[0]` is taken of a layer whose output is a tensor.

Before version 5 of transformers a layer returned a tuple, whose first element was the hidden
state. It returns the tensor itself now, so that `.output[0]` is the first row of the batch.

Wrong:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output[0].save()

Right:

    with model.trace("The Eiffel Tower is in"):
        hidden = model.transformer.h[1].output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..accesses import Access, Machine
from ..analysis import File
from ..diagnostics import WARNING, Finding

CODE = "NNS203"
SEVERITY = WARNING


def check(file: File) -> Iterator[Finding]:
    """Find reads of the first element of an output that used to be a tuple."""
    for machine, access, subscript in first_elements(file):
        if isinstance(subscript.ctx, ast.Load) and machine.may_fail(access):
            yield Finding(
                subscript,
                f"the output of {access.place} is a tensor, so .output[0] is its first row; "
                "transformers before 5 returned a tuple here: write .output",
            )


def first_elements(file: File) -> Iterator[tuple[Machine, Access, ast.Subscript]]:
    """Yield each `.output[0]` of a module that formerly returned a tuple, and now a tensor."""
    for machine in file.machines():
        for access in machine.accesses:
            link = file.tree.link(access.node)
            if link is None or access.port != "output":
                continue
            above = link.parent
            if not isinstance(above, ast.Subscript) or link.field != "value":
                continue
            if not (isinstance(above.slice, ast.Constant) and above.slice.value == 0):
                continue
            if _was_tuple(file, access):
                yield machine, access, above


def _was_tuple(file: File, access: Access) -> bool:
    structure = file.structure(access.model)
    if structure is None or access.path is None:
        return False
    modules = [structure.modules[place] for place in structure.places(access.path) or ()]
    return bool(modules) and all(one.was_tuple and one.output == "tensor" for one in modules)
