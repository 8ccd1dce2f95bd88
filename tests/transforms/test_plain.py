"""Which blocks are plain: their machines need no stack of their own.

A block that is taken for plain and is not raises at its first run, so what can run code of the
user's must never be plain. (`tests/test_failures.py` runs blocks that look plain and are not.)
"""

import pytest

from tests.transforms.lowering import lower, lower_body

PLAIN = {
    "h = m.a.output": {"m"},
    "h = m.a.output.norm(dim=-1)[0] + 1": {"m"},
    "m.a.output = m.b.output * 2": {"m"},
    "m.a.output[:, -1] += v": {"m", "v"},
    "z = [m.a[i].output for i in range(3)]": {"m", "range"},
    "for i in range(3):\n    if i: break\n    z.append(m.a[i].output)": {"m", "range", "z"},
    "h = m.a.output.save()": {"m"},
    "h = torch.cat([m.a.output, x])": {"m", "torch", "x"},
    "h = torch.nn.functional.relu(m.a.output)": {"m", "torch"},
    "for s in tracer.iter[:]:\n    z.append(m.a.output)": {"m", "tracer", "z"},
    "n = m.a.output.shape[0]": {"m"},
    "c = tracer.cache(modules=[m.a], device=None)": {"m", "tracer"},
    "assert m.a.output is not None, 'none'": {"m"},
    "if m.a.output.sum() > 0: m.b.output = 0": {"m"},
    "h = m.a.output\nwith h.sum().backward(): g = h.grad * v": {"m", "v"},
    "h = m.a.output\nwith h.sum().backward():\n    with (h * 2).sum().backward(): h.grad": {"m"},
}

NOT_PLAIN = {
    "a call of an unknown function": "h = f(m.a.output)",
    "a call of an unknown method": "h = m.a.output.project(x)",
    "a call of what a call returned": "h = m.a.output.norm()(x)",
    "an unknown attribute of a value": "h = m.a.output.thing",
    "a function": "def f(): return m.a.output",
    "a lambda": "f = lambda: m.a.output",
    "a class": "class K:\n    v = m.a.output",
    "a generator expression": "z = any(m.a.output for i in v)",
    "an f-string": "z = f'{m.a.output}'",
    "a with": "with lock: m.a.output",
    "a call in a backward pass": "h = m.a.output\nwith h.sum().backward(): f(h.grad)",
    "a loss by an unknown call": "h = m.a.output\nwith f(h).backward(): h.grad",
    "a backward pass given more than is seen": "h = m.a.output\nwith h.backward(**v): h.grad",
    "a backward pass beside another with": "with lock, m.a.output.backward(): v",
    "a backward pass without a block": "m.a.output.sum().backward()",
    "a try": "try: m.a.output\nfinally: pass",
    "a match": "match m.a.output:\n    case x: pass",
    "an import": "import os\nm.a.output",
    "a key": "z = sorted(v, key=m.a.output)",
    "keywords that are not seen": "z = m.a.output.norm(**v)",
    "a builtin of another meaning": "max = m.a\nz = max(1)",
    "a call that requests": "tracer.stop()",
    "a skip": "m.a.skip(m.b.output)",
}  # fmt: skip


@pytest.mark.parametrize("body", PLAIN)
def test_a_block_of_known_operations_is_plain(body):
    plain = lower_body(body).plain
    assert plain is not None
    assert plain.roots == PLAIN[body]


@pytest.mark.parametrize("claim", NOT_PLAIN)
def test_a_block_that_may_run_other_code_is_not_plain(claim):
    assert lower_body(NOT_PLAIN[claim]).plain is None


def test_a_plain_block_tells_whether_it_makes_a_cache():
    for body, makes_cache in {
        "h = m.a.output": False,
        "c = tracer.cache()": True,
        "h = m.a.output\nwith h.sum().backward(): c = tracer.cache()": True,
    }.items():
        plain = lower_body(body).plain
        assert plain is not None
        assert plain.makes_cache is makes_cache


def test_what_stands_in_an_invoke_is_a_program_of_its_own():
    program = lower(
        "with t.trace() as tracer:\n"
        "    with tracer.invoke(v[0]) as one:\n"
        "        h = f(m.a.output)\n"
    )
    assert program.plain is not None
    assert program.plain.roots == {"tracer", "v"}
    assert program.children[0].plain is None


@pytest.mark.parametrize(
    "opened", ["tracer.invoke(f(v))", "tracer.invoke(**v)", "f(v).invoke(0)", "m.trace(0)"]
)
def test_what_is_given_to_a_block_inside_counts(opened):
    program = lower(f"with t.trace() as tracer:\n    with {opened}:\n        h = m.a.output\n")
    assert program.plain is None
    assert program.children[0].plain is not None


def test_a_name_of_another_invoke_needs_no_look():
    source = (
        "with t.trace() as tracer:\n"
        "    with tracer.invoke(0):\n"
        "        h = m.a.output\n"
        "    with tracer.invoke(0):\n"
        "        m.b.output = h.clone()\n"
    )
    plain = lower(source).children[1].plain
    assert plain is not None
    assert plain.roots == {"m"}
