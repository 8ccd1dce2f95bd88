"""The table of states: each place where a block waits for the model."""

import pytest

from tests.transforms.lowering import lower, lower_body


def table(body: str) -> list[tuple[str, str, str, str | None, tuple[str | int | None, ...]]]:
    return [
        (state.kind, state.text, state.port, state.root, state.path)
        for state in lower_body(body).states
    ]


TABLES = {
    "h = m.a[3].b.output": [("read", "m.a[3].b.output", "output", "m", ("a", 3, "b"))],
    "m.output": [("read", "m.output", "output", "m", ())],
    "m.a[-1].input": [("read", "m.a[-1].input", "input", "m", ("a", -1))],
    "m['output'].inputs": [("read", "m['output'].inputs", "inputs", "m", ("output",))],
    "m.a[i].output": [("read", "m.a[i].output", "output", "m", ("a", None))],
    "m.a[1:2].output": [("read", "m.a[1:2].output", "output", "m", ("a", None))],
    "f(m).output": [("read", "f(m).output", "output", None, ())],
    "m.get('a').output": [("read", "m.get('a').output", "output", None, ())],
    "tracer.result": [("read", "tracer.result", "result", "tracer", ())],
    "m.a.output = m.b.output": [
        ("read", "m.b.output", "output", "m", ("b",)),
        ("write", "m.a.output", "output", "m", ("a",)),
    ],
    "m.a.output[0] = 1": [("write", "m.a.output", "output", "m", ("a",))],
    "m.a.output += m.b.input": [
        ("read", "m.a.output", "output", "m", ("a",)),
        ("read", "m.b.input", "input", "m", ("b",)),
        ("write", "m.a.output", "output", "m", ("a",)),
    ],
    "m.a.output, x = 1, 2": [("write", "m.a.output", "output", "m", ("a",))],
    "for m.a.output in v: pass": [("write", "m.a.output", "output", "m", ("a",))],
    "with v as m.a.output: pass": [("write", "m.a.output", "output", "m", ("a",))],
    "z = [m.a[i].output for i in v]": [("read", "m.a[i].output", "output", "m", ("a", None))],
    "z = lambda: m.a.output": [("read", "m.a.output", "output", "m", ("a",))],
    "z = f'{m.a.output}'": [("read", "m.a.output", "output", "m", ("a",))],
    "m.a.source.b_0.skip(m.c.output)": [
        ("read", "m.c.output", "output", "m", ("c",)),
        ("skip", "m.a.source.b_0.skip", "skip", "m", ("a", "source", "b_0")),
    ],
    "m.a.skip(1), m.source.skip, f(m).source.a.skip(1)": [],
    "output = x.outputs": [],
    "z = (m\n  .a\n  .output)": [("read", "m.a.output", "output", "m", ("a",))],
}


@pytest.mark.parametrize("body", TABLES)
def test_states_list_the_accesses_of_a_block(body):
    assert table(body) == TABLES[body]


def test_states_stand_in_the_order_of_evaluation():
    body = "m.w.output = f(m.a.output, m.b.output[m.c.output])\nm.d.output"
    assert [state.text for state in lower_body(body).states] == [
        "m.a.output",
        "m.b.output",
        "m.c.output",
        "m.w.output",
        "m.d.output",
    ]
    assert [state.number for state in lower_body(body).states] == [0, 1, 2, 3, 4]


def test_a_state_knows_its_line_and_column():
    source = "\n\nwith t.trace(0):\n    ü = m.a.output\n    if ü: m.b.output = 1\n"
    first, second = lower(source).states
    assert (first.line, first.column) == (4, len("    ü = ".encode()))
    assert (second.line, second.column) == (5, len("    if ü: ".encode()))


def test_a_text_that_is_not_ascii_is_cut_in_characters():
    (state,) = lower_body("x = 'ü', m.größe.output, 'é'").states
    assert state.text == "m.größe.output"


def test_states_of_an_inner_block_are_the_inner_programs():
    source = "with t.trace() as tracer:\n    with tracer.invoke(0):\n        h = m.a.output\n"
    program = lower(source)
    assert [state.text for state in program.children[0].states] == ["m.a.output"]
