"""Lowered code carries the user's positions: tracebacks, breakpoints and coverage show their lines.

A position of a code object counts bytes of UTF-8, as Python's own do.
"""

import dis
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.transforms.lowering import (
    FILENAME,
    codes_below,
    drive,
    lower,
    outcome_in_python,
    outcome_when_lowered,
    with_of,
)

SOURCES = {
    "plain": "with t.trace(0):\n    h = m.a[3].output\n    m.b.output = h * 2\n",
    "non-ascii": "with t.trace('ü'):\n    größe = 'é→' + str(m.ж.output); z = m.a.output\n",
    "wide characters": (
        "with t.trace(0):\n    '🎉🎉'; z = ('🎉', m.a.output, '🎉'); m.b.output\n"
    ),
    "tabs": (
        "def f():\n\twith t.trace(0):\n\t\tif x:\n\t\t\th = m.a.output\n\t\tz = m.b.output\n"
    ),
    "indented": (
        "class K:\n    def f(self):\n        with t.trace(0):\n            h = m.a.output\n"
    ),
    "below the top": "import os\n\n\n# a comment\nwith t.trace(0):\n\n    h = m.a.output\n",
    "strings over lines": (
        'with t.trace(0):\n    s = """one\n  two\nthree"""; h = m.a.output\n    m.b.output\n'
    ),
    "string in an access": 'with t.trace(0):\n    h = m["""a\nb"""].output + m.b.output\n',
    "semicolons": "with t.trace(0): h = m.a.output; k = m.b.output; m.c.output = 1\n",
    "expression over lines": (
        "with t.trace(0):\n"
        "    h = (m.a\n         .output\n         [0]) + f(\n        m.b.output)\n"
    ),
    "continued line": "with t.trace(0):\n    h = m.a.output + \\\n        m.b.output\n",
    "header over lines": "with t.trace(\n    0,\n) as tracer:\n    h = m.a.output\n",
    "comprehension": (
        "with t.trace(0):\n"
        "    z = [m.a.output\n"
        "         for i in y\n"
        "         if m.b.output]\n"
        "    w = {k: {m.c.output for j in y} for k in y}\n"
    ),
    "steps": (
        "with t.trace(0) as tracer:\n"
        "    for step in tracer.iter[:]:\n"
        "        z = m.a.output\n"
        "    with tracer.all() as k:\n"
        "        w = m.b.output\n"
    ),
    "control flow": (
        "with t.trace(0):\n"
        "    try:\n"
        "        while m.a.output:\n"
        "            break\n"
        "    except E as e:\n"
        "        pass\n"
        "    finally:\n"
        "        z = m.b.output\n"
        "    match m.c.output:\n"
        "        case [x] if m.d.output:\n"
        "            pass\n"
    ),
    "writes": (
        "with t.trace(0):\n"
        "    m.a.output[0] = m.b.output\n"
        "    m.c.output[:, -1] += v; m.d.output\n"
        "    x = m.e.output = m.f.output\n"
        "    m.g.output -= 1\n"
    ),
    "functions": (
        "with t.trace(0):\n"
        "    def f(p=1):\n"
        "        return p.save()\n"
        "    z = m.a.output.save()\n"
        "    w = list(map(lambda q: q + 1, y))\n"
    ),
    "read first": "with t.trace(0):\n    x = x + m.a.output\n    y += m.b.output\n",
    "inner blocks": (
        "with t.trace() as tracer:\n"
        "    with tracer.invoke(1) as one:\n"
        "        h = m.a.output\n"
        "    for i in y:\n"
        "        with tracer.invoke(2):\n"
        "            m.b.output = h\n"
        "            k = m.c.output\n"
    ),
}  # fmt: skip

READS = {
    "plain": ["m.a[3].output"],
    "non-ascii": ["m.ж.output", "m.a.output"],
    "wide characters": ["m.a.output", "m.b.output"],
    "tabs": ["m.a.output", "m.b.output"],
    "indented": ["m.a.output"],
    "below the top": ["m.a.output"],
    "strings over lines": ["m.a.output", "m.b.output"],
    "string in an access": ['m["""a\nb"""].output', "m.b.output"],
    "semicolons": ["m.a.output", "m.b.output"],
    "expression over lines": ["m.a\n         .output", "m.b.output"],
    "continued line": ["m.a.output", "m.b.output"],
    "header over lines": ["m.a.output"],
    "comprehension": ["m.a.output", "m.b.output", "m.c.output"],
    "steps": ["m.a.output", "m.b.output"],
    "control flow": ["m.a.output", "m.b.output", "m.c.output", "m.d.output"],
    "writes": ["m.a.output", "m.b.output", "m.c.output", "m.d.output", "m.f.output", "m.g.output"],
    "functions": ["m.a.output"],
    "read first": ["m.a.output", "m.b.output"],
    "inner blocks": ["m.a.output", "m.c.output"],
}

WRITES = {
    "plain": ["m.b.output = h * 2"],
    "semicolons": ["m.c.output = 1"],
    "writes": [
        "m.a.output[0] = m.b.output",
        "m.c.output[:, -1] += v",
        "x = m.e.output = m.f.output",
        "m.g.output -= 1",
    ],
    "inner blocks": ["m.b.output = h"],
}

CHAINED = {"expression over lines": {3}}

Position = tuple[int, int, int, int]


def positions_in(code: CodeType) -> Iterator[tuple[dis.Instruction, Position]]:
    """Iterate over instructions that have a position, as (line, column, last line, last column)."""
    for instruction in dis.get_instructions(code):
        place = instruction.positions
        if instruction.opname == "RESUME":
            continue  # column 0 in any function (Python 3.11)
        if place is None or place.lineno is None or place.end_lineno is None:
            continue
        if place.col_offset is None or place.end_col_offset is None:
            continue
        yield (
            instruction,
            (place.lineno, place.col_offset, place.end_lineno, place.end_col_offset),
        )


def text_at(source: str, position: Position) -> str:
    line, column, last_line, last_column = position
    lines = [text.encode() for text in source.splitlines()][line - 1 : last_line]
    lines[-1] = lines[-1][:last_column]
    lines[0] = lines[0][column:]
    return b"\n".join(lines).decode()


def all_codes(source: str) -> list[CodeType]:
    program = lower(source)
    return [code for found in program.all_programs() for code in codes_below(found.code)]


def texts_of_yields(source: str) -> list[str]:
    return [
        text_at(source, position)
        for code in all_codes(source)
        for instruction, position in positions_in(code)
        if instruction.opname == "YIELD_VALUE"
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_a_read_waits_at_the_text_of_its_access(name):
    found = texts_of_yields(SOURCES[name])
    # CPython repeats the code of a `finally` for each way out of it
    reads = {text for text in found if text.endswith(".output") and "=" not in text}
    assert sorted(reads) == sorted(READS[name])


@pytest.mark.parametrize("name", WRITES)
def test_a_write_waits_at_the_text_of_its_statement(name):
    found = texts_of_yields(SOURCES[name])
    assert sorted(set(found) & set(WRITES[name])) == sorted(WRITES[name])


@pytest.mark.parametrize("name", SOURCES)
def test_every_position_lies_in_the_block(name):
    source = SOURCES[name]
    node = with_of(source)
    first = (node.lineno, node.col_offset)
    last = (node.end_lineno, node.end_col_offset)
    for code in all_codes(source):
        assert code.co_filename == FILENAME
        assert code.co_firstlineno >= node.lineno
        for instruction, (line, column, last_line, last_column) in positions_in(code):
            assert first <= (line, column) <= last, instruction
            assert first <= (last_line, last_column) <= last, instruction


@pytest.mark.parametrize("name", SOURCES)
def test_no_position_spans_several_statements_of_the_block(name):
    source = SOURCES[name]
    node = with_of(source)
    starts = [(child.lineno, child.col_offset) for child in node.body]
    whole = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
    for code in codes_below(lower(source).code):
        for instruction, position in positions_in(code):
            if position == whole:
                continue  # the end of the block stands for all of it
            inside = [s for s in starts if position[:2] < s < position[2:]]
            assert not inside, (instruction, text_at(source, position))


@pytest.mark.parametrize("name", SOURCES)
def test_the_lines_that_have_code_are_those_of_plain_python(name):
    source = SOURCES[name]
    node = with_of(source)
    inside = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
    plain = compile(source, FILENAME, "exec")
    wanted = {line for code in codes_below(plain) for _, _, line in code.co_lines()}
    found = {line for code in all_codes(source) for _, _, line in code.co_lines()}
    found = {line for line in found if line in inside}
    assert found <= wanted
    # an attribute on a line of its own is where Python sees its load; an access is seen as a whole
    assert {line for line in wanted if line in inside} - found <= CHAINED.get(name, set())


@pytest.mark.parametrize("name", SOURCES)
def test_code_has_the_names_of_plain_python(name):
    plain = compile(SOURCES[name], FILENAME, "exec")
    wanted = {code.co_name for code in codes_below(plain)}
    assert {code.co_name for code in all_codes(SOURCES[name])} <= {*wanted, "<module>"} | {
        "<listcomp>",
        "<setcomp>",
        "<dictcomp>",
    }


TRACED = {
    "statements": "x = a.output\ny = x + 1\nb.output = y",
    "a loop": "for i in (1, 2):\n    if a.output == i:\n        x = b.output\nelse:\n    y = 1",
    "an error": (
        "x = 1\n"
        "try:\n"
        "    a.output // 0\n"
        "except ZeroDivisionError:\n"
        "    y = b.output\n"
        "finally:\n"
        "    x = 2"
    ),
    "a function": "def f(p):\n    q = p\n    return q\nx = f(a.output)",
}  # fmt: skip


def lines_executed(run: Any) -> list[int]:
    lines: list[int] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != FILENAME:
            return None
        if event == "line" and (not lines or lines[-1] != frame.f_lineno):
            lines.append(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("name", TRACED)
def test_a_debugger_stops_at_the_same_lines(name):
    plain = lines_executed(lambda: outcome_in_python(TRACED[name], in_function=False))
    lowered = lines_executed(lambda: outcome_when_lowered(TRACED[name], in_function=False))
    assert [line for line in lowered if line > 1] == [line for line in plain if line > 1]


UNTOUCHED = {
    "statements": "x = 1\ny = [i for i in range(x)]  # a comment\n\nif x:\n    y.append(2)\n",
    "odd spacing": "x=1 ;y  =  2\nz = (x,\n       y)\n",
    "a function": "def f( p ):\n\treturn p\nw = lambda:f(1)\n",
    "an empty block": "pass\n",
    "a string": "'''one\n  two'''\n",
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_a_block_without_an_access_keeps_its_text(name):
    body = UNTOUCHED[name]
    lines = body.splitlines(keepends=True)
    inside = "".join(f"    {line}" if line.strip() else line for line in lines)
    lowered = lower(f"with t.trace(0):\n{inside}").lowered
    assert lowered == f'def block():\n{inside}    yield ("end",)\n'


def test_a_traceback_ends_at_the_line_that_asked():
    source = "\n\nwith t.trace(0):\n    x = 1\n    h = [m.nothing.output for i in (1,)]\n"
    program = lower(source)
    with pytest.raises(AttributeError) as caught:
        drive(program, {"m": object()}, {})
    entry = caught.traceback[-1]
    assert (str(entry.path), entry.lineno + 1) == (FILENAME, 5)
