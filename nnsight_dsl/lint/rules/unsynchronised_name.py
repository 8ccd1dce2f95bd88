"""An invoke reads a name that an earlier one binds in a loop, without a barrier between them.

If an earlier invoke binds a name once, a later one waits for it. A name that is bound in a loop, or
more than once, has several values, and it is undefined which one is meant; both invokes have to
meet at a barrier.

Wrong:

    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            for layer in model.transformer.h:
                hidden = layer.output
        with tracer.invoke("The Eiffel Tower is in"):
            model.lm_head.input = hidden

Right:

    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("The Eiffel Tower is in"):
            for layer in model.transformer.h:
                hidden = layer.output
            barrier()
        with tracer.invoke("The Eiffel Tower is in"):
            barrier()
            model.lm_head.input = hidden
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from ..accesses import is_step_loop
from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding
from ..held_values import called_method
from ..lowering import program_of

CODE = "NNS601"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Find the unsynchronised names of the lowered programs, in runs without a barrier."""
    for block in file.blocks:
        for run in block.all_blocks():
            if not run.is_run or not _may_share(run):
                continue
            if file.machine(run).tracer_escapes() or _has_barrier(run):
                continue
            yield from _findings(file, block, run)


def _findings(file: File, outermost: Block, run: Block) -> Iterator[Finding]:
    program = program_of(file, outermost)
    if program is None:
        return
    unsynchronised = {
        one.line: one.unsynchronised for one in program.all_programs() if one.kind == "invoke"
    }
    for invoke in run.invokes:
        for name in sorted(unsynchronised.get(invoke.node.lineno, ())):
            read = _first_read(invoke, name)
            if read is not None:
                yield Finding(
                    read,
                    f"{name!r} is bound by an earlier invoke more than once or in a loop, so "
                    "nothing says which value is meant; let both wait at a tracer.barrier(2), "
                    "after the binding and before this line",
                )


def _may_share(run: Block) -> bool:
    """Return whether an invoke reads a name that an earlier one binds repeatedly.

    A cheap test, since lowering takes long.
    """
    repeated: set[str] = set()
    for invoke in run.invokes:
        names = [node for node in run.tree.walk(invoke.node) if isinstance(node, ast.Name)]
        if any(isinstance(one.ctx, ast.Load) and one.id in repeated for one in names):
            return True
        bound = Counter(one.id for one in names if not isinstance(one.ctx, ast.Load))
        for one in names:
            is_bound = not isinstance(one.ctx, ast.Load)
            if is_bound and (bound[one.id] > 1 or _is_in_loop(run, one)):
                repeated.add(one.id)
    return False


def _is_in_loop(run: Block, node: ast.AST) -> bool:
    for above in run.tree.above(node):
        if above is run.node:
            return False
        if isinstance(above, (ast.For, ast.While)) or is_step_loop(above):
            return True
    return False


def _has_barrier(run: Block) -> bool:
    return any(
        isinstance(node, ast.Call) and called_method(node) == "barrier"
        for node in run.tree.walk(run.node)
    )


def _first_read(invoke: Block, name: str) -> ast.Name | None:
    reads = [
        node
        for node in invoke.nodes()
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    return min(reads, key=lambda node: (node.lineno, node.col_offset), default=None)
