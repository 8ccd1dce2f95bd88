"""Showing a program: its states, and the location that each waits for.

    with model.trace("Hello") as tracer:
        hidden = model.transformer.h[3].output
        model.transformer.h[5].output = hidden * 2

has two states: it waits for `transformer.h.3.output`, binds `hidden`, and then waits until
`transformer.h.5.output` is offered, to replace it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnsight_dsl.transforms.parsing import parsed_statements
from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.source.accesses import State


@dataclass(frozen=True, slots=True)
class Row:
    """One state, as a row of the table.

    Attributes:
        state: number of the state in its block.
        line: line in the user's file.
        waits_for: the location, as the text spells it.
        binds: names that its statement binds.
        runs_after: lines that run after it, before the next state.
    """

    state: int
    line: int
    waits_for: str
    binds: tuple[str, ...]
    runs_after: tuple[int, ...]


def rows_of(program: Program) -> list[Row]:
    """Describe the states of one program, without those of its inner blocks."""
    statements = _statements(program)
    inner = {line for child in program.children for line in _lines_of(child)}
    states = [state for state in program.states if state.line not in inner]
    rows = []
    for index, state in enumerate(states):
        following = states[index + 1].line if index + 1 < len(states) else None
        last = following if following is not None else _last_line(program) + 1
        after = tuple(
            line for line in sorted(statements) if state.line < line < last and line not in inner
        )
        verb = "write " if state.kind == "write" else ""
        rows.append(
            Row(state.number, state.line, verb + state.text, _bound_at(statements, state), after)
        )
    return rows


def explain(program: Program, *, colour: bool = False) -> str:
    """Show the states of a program and of the blocks inside it.

    Args:
        program: the program, as `programs_in` finds it in a file.
        colour: whether to add the codes that colour a terminal.

    Returns:
        A table for each block, one below the other: for each access its line, its kind and its
        location.

    Example:
        >>> for program in programs_in(Path("experiment.py"), line=12):
        ...     print(explain(program))
    """
    from rich import box
    from rich.table import Table

    from nnsight_dsl.rendering import rendered

    tables = []
    for one in program.all_programs():
        title = f"{one.filename}:{one.line}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("state", "line", "waits for", "binds", "then runs lines"):
            table.add_column(heading)
        for row in rows_of(one):
            table.add_row(*_cells(row))
        tables.append(table)
    return rendered(*tables, width=120, colour=colour, highlight=True)


def _cells(row: Row) -> tuple[str, ...]:
    from rich.markup import escape

    cells = (str(row.state), str(row.line), row.waits_for, ", ".join(row.binds))
    return tuple(escape(cell) for cell in (*cells, _ranges(row.runs_after)))


def mermaid(program: Program) -> str:
    """Return the states of a program as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for number, one in enumerate(program.all_programs()):
        previous, bound = "[*]", ""
        for row in rows_of(one):
            name = f"s{number}_{row.state}"
            label = row.waits_for.replace('"', "'").replace(":", "#58;")
            lines.append(f'    state "line {row.line}, {label}" as {name}')
            lines.append(f"    {previous} --> {name}{bound}")
            previous, bound = name, f" : binds {', '.join(row.binds)}" if row.binds else ""
        lines.append(f"    {previous} --> [*]{bound}")
    return "\n".join(lines) + "\n"


def programs_in(path: Path, line: int | None = None) -> list[Program]:
    """Lower the blocks of a file.

    Args:
        path: a Python file.
        line: return only the blocks that contain this line.

    Raises:
        SyntaxError: the file is not valid Python.
    """
    from nnsight_dsl.transforms.source.modules import rewrite_module

    _, programs = rewrite_module(path.read_text(), str(path))
    if line is None:
        return list(programs)
    return [program for program in programs if line in _lines_of(program)]


def _lines_of(program: Program) -> range:
    return range(program.line, _last_line(program) + 1)


def _last_line(program: Program) -> int:
    return program.line + program.source.count("\n")


def _statements(program: Program) -> dict[int, ast.stmt]:
    """Map lines to the innermost statement that begins there."""
    try:
        outer = parsed_statements(program.source, program.line)[0]
    except SyntaxError:
        return {}
    found: dict[int, ast.stmt] = {}
    for node in ast.walk(outer):
        if isinstance(node, ast.stmt) and node is not outer:
            found[node.lineno] = node
    return found


def _bound_at(statements: dict[int, ast.stmt], state: State) -> tuple[str, ...]:
    at = [line for line in statements if line <= state.line]
    if state.kind == "write" or not at:
        return ()
    node = statements[max(at)]
    targets: Iterable[ast.expr] = ()
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For)):
        targets = [node.target]
    return tuple(
        name.id
        for target in targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    )


def _ranges(lines: Iterable[int]) -> str:
    """Format lines as ranges: 3, 4, 5, 9 as `3-5, 9`."""
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
