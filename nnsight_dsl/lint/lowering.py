"""Lowering of a linted block, for facts that only its program has.

Rules work on the syntax tree, which is fast. The names that invokes share are computed by the
lowering, which takes longer, so a rule calls this only for blocks that may have a finding.
"""

from __future__ import annotations

import ast

from nnsight_dsl.transforms.errors import UnsupportedSyntaxError
from nnsight_dsl.transforms.program import Program

from .analysis import File
from .blocks import Block


def program_of(file: File, block: Block) -> Program | None:
    """Lower an outermost block; None if it contains a construct that cannot be lowered."""
    from nnsight_dsl.transforms.source.pipeline import lower_block, lower_function
    from nnsight_dsl.transforms.source.surroundings import Surroundings
    from nnsight_dsl.transforms.source.unsupported import is_last_of

    is_last = isinstance(block.node, ast.With) and is_last_of(block.function(), block.node)
    around = Surroundings(file.source.file, file.source.lines, is_function=True, is_last=is_last)
    try:
        if block.call is None:
            return lower_function(block.node, around)  # type: ignore[arg-type]
        item = next(
            index
            for index, one in enumerate(block.node.items)  # type: ignore[union-attr]
            if one.context_expr is block.call
        )
        return lower_block(block.node, item, around)  # type: ignore[arg-type]
    except UnsupportedSyntaxError:
        return None
