"""A barrier is made for a number of invokes that differs from the number that wait at it.

`tracer.barrier(n)` releases the waiting invokes when n of them have arrived. If fewer arrive, they
wait until the run ends; if more arrive, the remaining ones do.

Wrong:

    with model.trace() as tracer:
        barrier = tracer.barrier(3)
        with tracer.invoke("The Eiffel Tower is in"):
            hidden = model.transformer.h[1].output
            barrier()
        with tracer.invoke("The Colosseum is in the"):
            barrier()
            model.transformer.h[1].output[:, -1] = hidden[:, -1]

Right:

    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("The Eiffel Tower is in"):
            hidden = model.transformer.h[1].output
            barrier()
        with tracer.invoke("The Colosseum is in the"):
            barrier()
            model.transformer.h[1].output[:, -1] = hidden[:, -1]
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding
from ..held_values import called_method
from ..tree import bound_by

CODE = "NNS602"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Count the invokes that wait at each barrier, if each is certain to wait exactly once."""
    for run in file.all_blocks():
        if not run.is_run or not run.invokes:
            continue
        for statement in run.nodes():
            call = statement.value if isinstance(statement, ast.Assign) else None
            if not isinstance(call, ast.Call) or called_method(call) != "barrier":
                continue
            argument = call.args[0] if len(call.args) == 1 else None
            count = argument.value if isinstance(argument, ast.Constant) else None
            waiting = _participants(file, run, statement)
            if type(count) is not int or count < 1 or not waiting or waiting % count == 0:
                continue
            yield Finding(
                call,
                f"this barrier is for {count} invokes, and {waiting} "
                f"{'waits' if waiting == 1 else 'wait'} at it; make it for as many as wait",
            )


def _participants(file: File, run: Block, statement: ast.AST) -> int | None:
    """Count the invokes that wait at a barrier; None if the number is uncertain."""
    counted = 0
    known: set[ast.AST] = set()
    binder = file.names.bindings.binder
    for invoke in run.invokes:
        if not file.tree.conditions(invoke.node, run.node).always:
            return None
        calls = [
            call
            for call in file.machine(invoke).calls
            if isinstance(call.func, ast.Name) and binder(call.func) is statement
        ]
        if len(calls) > 1 or not all(
            file.tree.conditions(call, invoke.node).always for call in calls
        ):
            return None
        counted += len(calls)
        known.update(call.func for call in calls)
    names = bound_by(statement.targets[0]) if isinstance(statement, ast.Assign) else frozenset()
    for node in file.tree.walk(run.node):
        is_read = isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load)
        if is_read and node not in known:
            return None
    return counted
