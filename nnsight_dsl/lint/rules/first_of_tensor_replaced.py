"""`.output[0] = x` is written to a layer whose output is a tensor.

Before version 5 of transformers a layer returned a tuple, and this assignment replaced its hidden
state. Now the output is the tensor itself, so it replaces the first row of the batch only.

Wrong:

    with model.trace(["The Eiffel Tower is in", "The Colosseum is in the city of"]):
        hidden = model.transformer.h[1].output
        model.transformer.h[1].output[0] = hidden[0] * 0

Right:

    with model.trace(["The Eiffel Tower is in", "The Colosseum is in the city of"]):
        hidden = model.transformer.h[1].output
        model.transformer.h[1].output = hidden * 0
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import WARNING, Finding
from .first_of_tensor import first_elements

CODE = "NNS204"
SEVERITY = WARNING


def check(file: File) -> Iterator[Finding]:
    """Find assignments to the first element of an output that used to be a tuple."""
    for machine, access, subscript in first_elements(file):
        if isinstance(subscript.ctx, ast.Store) and machine.may_fail(access):
            yield Finding(
                subscript,
                f"the output of {access.place} is a tensor, so .output[0] = ... replaces its first "
                "row; transformers before 5 returned a tuple here: write .output = ...",
            )
