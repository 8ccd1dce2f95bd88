"""Which names a block binds, reads, and takes from outside."""

import pytest

from nnsight_dsl.transforms.source.scopes import names_of
from tests.transforms.lowering import lower, lower_body

BINDINGS = {
    "x = 1": {"x"},
    "x, (y, *z) = v": {"x", "y", "z"},
    "x += 1": {"x"},
    "x: int = 1": {"x"},
    "for x in v: pass": {"x"},
    "for x, y in v: pass": {"x", "y"},
    "with v as x: pass": {"x"},
    "with v as (x, y), w as z: pass": {"x", "y", "z"},
    "import os": {"os"},
    "import os.path": {"os"},
    "import os.path as p": {"p"},
    "from os import path as p, sep": {"p", "sep"},
    "def f(p): q = p": {"f"},
    "class K:\n    v = 1": {"K"},
    "(x := 1)": {"x"},
    "[x := i for i in v]": {"x"},
    "y = [i for i in v]": {"y"},
    "y = [i for i in v]\nz = i": {"y", "z"},
    "y = [i for i in v]\ndef f(i): i = 1": {"y", "f"},
    "y = [i for i in v]\nimport i": {"y", "i"},
    "y = {i: [j for j in w] for i in v}": {"y"},
    "y = [lambda: i for i in v]": {"y"},
    "y = lambda p: p": {"y"},
    "try: pass\nexcept E as x: pass": {"x"},
    "match v:\n    case [x, *y]: pass\n    case {'k': z, **w}: pass": {"x", "y", "z", "w"},
    "x.y = 1": set(),
    "x[0] = 1": set(),
    "del x": {"x"},
    "m.output = 1": set(),
    "y = m.output": {"y"},
    "m.output[0] = x = 1": {"x"},
    "z = [m.output for i in v]": {"z"},
}

# the names that have to be given because they may be read before they are bound
READ_FIRST = {
    "x = x + 1": {"x"},
    "x += 1": {"x"},
    "if v:\n    x += 1": {"x"},
    "for i in v:\n    x += i": {"x"},
    "with v:\n    x += 1": {"x"},
    "try:\n    x += 1\nfinally: pass": {"x"},
    "while v:\n    x -= 1": {"x"},
    "if v:\n    x = 1\ny = x": {"x"},
    "for x in v: pass\ny = x": {"x"},
    "y = x\nx = 1": {"x"},
    "def f(): return x\nx = 1": {"x"},
    "f = lambda: x\nx = 1": {"x"},
    "y = [x for i in v]\nx = 1": {"x"},
    "y = [0 for x in v]\nz = x\nx = 1": {"x"},
    "y = v and (x := 1)\nz = x": {"x"},
    "y = 1 if v else (x := 2)\nz = x": {"x"},
    "x = 1\ny = x": set(),
    "x, y = 1, 2\nz = x": set(),
    "x = y = m.output\nz = y": set(),
    "import x\ny = x": set(),
    "from v import a as x\ny = x": set(),
}  # fmt: skip


@pytest.mark.parametrize("body", BINDINGS)
def test_a_block_binds_what_its_statements_bind(body):
    assert lower_body(body).bound == BINDINGS[body]


@pytest.mark.parametrize("body", READ_FIRST)
def test_a_name_that_may_be_read_first_is_given(body):
    program = lower_body(body)
    missing = READ_FIRST[body] - set(program.params)
    assert not missing
    if not READ_FIRST[body]:
        assert "x" not in program.params


def test_names_that_are_read_come_from_outside():
    found = names_of("def block():\n    y = x\n    def f():\n        return z\n    print(y)\n")
    assert found.read == {"x", "z", "print"}
    assert found.bound == {"y", "f"}


def test_a_loop_variable_is_also_read_where_it_stands_outside_of_its_loop():
    found = names_of("def block():\n    y = [i for i in v]\n    z = i\n")
    assert found.read == {"i", "v"}


def test_our_own_names_are_not_the_users():
    found = names_of("def block():\n    _nns_value = x\n    y = _nns_value\n")
    assert found.bound == {"y"}
    assert found.read == {"x"}


def test_a_name_declared_global_in_a_nested_function_is_not_read():
    found = names_of("def block():\n    def f():\n        global x\n        x = y\n")
    assert found.read == {"y"}


def test_names_of_the_enclosing_function_are_given():
    known = frozenset({"p", "q", "unused"})
    program = lower_body("z = p + g\nf = lambda: q", is_function=True, locals=known)
    assert program.params == ("p", "q")
    assert not program.outer_is_global


def test_globals_are_looked_up_when_they_are_read():
    program = lower_body("z = p + g")
    assert program.params == ()
    assert program.outer_is_global


def test_an_inner_block_passes_its_needs_on():
    source = (
        "with t.trace() as tracer:\n"
        "    i = 1\n"
        "    with tracer.invoke(0):\n"
        "        z = p + i + m.output\n"
    )
    program = lower(source, is_function=True, locals=frozenset({"p", "m", "t"}))
    (child,) = program.children
    assert child.params == ("i", "m", "p")
    assert set(program.params) == {"m", "p", "tracer"} - {"tracer"}


def test_names_saved_are_those_assigned_from_save():
    program = lower_body(
        "a = x.save()\n"
        "b, (c, d) = x.save(), (1, nnsight_dsl.save(x))\n"
        "e: int = save(x)\n"
        "f = [x.save()]\n"
        "g = (h := x.save())\n"
        "i = x"
    )
    assert program.saved_names == {"a", "b", "d", "e", "h"}


SHARED = {
    "a later invoke reads what an earlier one binds": (
        ("h = m.output", "k = h"),
        [(set(), set()), ({"h"}, {"h"})],
    ),
    "an earlier invoke gets nothing from a later one": (
        ("k = h", "h = m.output"),
        [(set(), set()), (set(), set())],
    ),
    "a name that an invoke binds itself first is its own": (
        ("h = m.output", "h = 1\nk = h"),
        [(set(), set()), (set(), set())],
    ),
    "a loop variable is the invoke's own": (
        ("for i in v: k = m.output", "for i in v: j = i"),
        [(set(), set()), (set(), set())],
    ),
    "a target of with is the invoke's own": (
        ("with v as i: k = m.output", "with v as i: j = i"),
        [(set(), set()), (set(), set())],
    ),
    "a name caught is the invoke's own": (
        ("try: m.output\nexcept E as e: k = e", "try: m.output\nexcept E as e: j = e"),
        [(set(), set()), (set(), set())],
    ),
    "a captured name is the invoke's own": (
        ("match v:\n    case i: k = m.output", "match v:\n    case i: j = i"),
        [(set(), set()), (set(), set())],
    ),
    "a function is the invoke's own": (
        ("def f(): return 1\nk = f()", "def f(): return 2\nj = f()"),
        [(set(), set()), (set(), set())],
    ),
    "a comprehension's variable is its own": (
        ("i = m.output", "j = [i for i in v]"),
        [(set(), set()), (set(), set())],
    ),
    "a parameter is its function's own": (
        ("i = m.output", "f = lambda i: i"),
        [(set(), set()), (set(), set())],
    ),
    "a keyword and an attribute are no names": (
        ("i = m.output", "f(i=1)\nx.i"),
        [(set(), set()), (set(), set())],
    ),
    "what is bound in a loop cannot be waited for": (
        ("for n in v: h = m.output", "k = h"),
        [(set(), set()), ({"h"}, set())],
    ),
    "what is bound twice cannot be waited for": (
        ("h = m.output\nh = h + 1", "k = h"),
        [(set(), set()), ({"h"}, set())],
    ),
    "a name read in a nested function": (
        ("h = m.output", "k = (lambda: h)()"),
        [(set(), set()), ({"h"}, {"h"})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("claim", SHARED)
def test_invokes_share_names(claim):
    bodies, wanted = SHARED[claim]
    source = "with t.trace() as tracer:\n"
    for body in bodies:
        source += "    with tracer.invoke(0):\n"
        source += "".join(f"        {line}\n" for line in body.splitlines())
    found = [(set(child.fetched), set(child.waits_for)) for child in lower(source).children]
    assert found == wanted
