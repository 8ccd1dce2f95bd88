"""An invoke is opened inside another invoke.

The invokes of a trace form one batch. Each has its rows of the batch, so none contains another.

Wrong:

    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            hidden = model.transformer.h[1].output.save()
            with tracer.invoke("The Colosseum is in"):
                logits = model.lm_head.output.save()

Right:

    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            hidden = model.transformer.h[1].output.save()

        with tracer.invoke("The Colosseum is in"):
            logits = model.lm_head.output.save()
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding
from ..steps import run_of

CODE = "NNS402"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find invokes inside an invoke of the same run."""
    for block in file.all_blocks():
        if block.kind == "invoke" and block.call is not None and _is_inside_another(block):
            conditions = file.tree.conditions(block.node, file.tree.module)
            if not conditions.is_handled:
                yield Finding(
                    block.call,
                    "an invoke is opened while another one runs; write the invokes one after the "
                    "other, each directly in the trace",
                    raises="InvokeError",
                )


def _is_inside_another(block: Block) -> bool:
    above = block.parent
    while above is not None and above.kind in ("invoke", "backward"):
        if above.kind == "invoke":
            return run_of(above) is not None
        above = above.parent
    return False
