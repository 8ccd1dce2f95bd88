"""A block contains a construct that cannot be lowered.

A block is compiled to a separate function. A construct that would leave the block other than at its
end (`return`, `break` of an outer loop, `yield`, `await`) has no meaning there, and is refused when
the block is entered.

Wrong:

    def hidden(prompt):
        with model.trace(prompt):
            return model.transformer.h[1].output


    hidden("The Eiffel Tower is in")

Right:

    def hidden(prompt):
        with model.trace(prompt):
            found = model.transformer.h[1].output.save()
        return found


    hidden("The Eiffel Tower is in")
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from nnsight_dsl.transforms.errors import UnsupportedSyntaxError
from nnsight_dsl.transforms.source.unsupported import is_last_of, refuse_unsupported

from ..analysis import File
from ..blocks import INTERVENTION, Block, is_intervene
from ..diagnostics import ERROR, Finding

CODE = "NNS801"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Report the constructs that the lowering refuses, with the same messages."""
    lines = file.source.lines
    for block in file.blocks:
        try:
            refuse_unsupported(
                block.body,
                file.source.file,
                lines,
                may_return=block.kind == INTERVENTION,
                is_last=_is_last(block),
            )
        except UnsupportedSyntaxError as error:
            line = error.lineno or block.node.lineno
            text = lines[line - 1] if line <= len(lines) else ""
            column = len(text[: max((error.offset or 1) - 1, 0)].encode())
            node = ast.Pass(lineno=line, col_offset=column, end_lineno=line, end_col_offset=column)
            yield Finding(node, error.msg)
    for other in file.tree.walk(file.tree.module):
        if isinstance(other, ast.AsyncFunctionDef) and any(map(is_intervene, other.decorator_list)):
            yield Finding(
                other,
                "an intervention that is an 'async def' cannot be lowered; write 'def', and await "
                "before or after it",
            )


def _is_last(block: Block) -> bool:
    return (
        block.parent is None
        and isinstance(block.node, ast.With)
        and is_last_of(block.function(), block.node)
    )
