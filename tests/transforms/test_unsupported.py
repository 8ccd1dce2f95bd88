"""What cannot be lowered is refused before anything runs: the construct, where, and a way out."""

import textwrap

import pytest

from nnsight_dsl.transforms.errors import UnsupportedSyntaxError
from tests.transforms.lowering import FILENAME, lower

# name: source with ^ before the place that is refused, construct in the text, remedy in the text
REFUSED = {
    "return": ("def f():\n    with t.trace(0):\n        ^return x", "'return'", "after the block"),
    "return in a loop": (
        "def f():\n    with t.trace(0):\n        for i in y:\n            ^return i",
        "'return'",
        "save the value in the block",
    ),
    "return before other statements": (
        "def f():\n    with t.trace(0):\n        if y: ^return\n    z",
        "'return'",
        "put the rest of the block under an 'if'",
    ),
    "return in finally": (
        "def f():\n    with t.trace(0):\n        try: x\n        finally: ^return x",
        "'return'",
        "return it after the block",
    ),
    "break": (
        "for i in y:\n    with t.trace(0):\n        if i: ^break",
        "'break' of an outer loop",
        "leave the loop after the block",
    ),
    "continue": (
        "while y:\n    with t.trace(0):\n        ^continue",
        "'continue' of an outer loop",
        "leave the loop after the block",
    ),
    "break in the else of a loop": (
        "while y:\n    with t.trace(0):\n        for i in y: pass\n        else: ^break",
        "'break' of an outer loop",
        "leave the loop after the block",
    ),
    "break out of an invoke": (
        "with t.trace() as tracer:\n"
        "    for i in y:\n"
        "        with tracer.invoke(i):\n"
        "            ^break",
        "'break'",
        "the block",
    ),
    "continue out of an invoke": (
        "with t.trace() as tracer:\n"
        "    for i in y:\n"
        "        with tracer.invoke(i):\n"
        "            if i: ^continue",
        "'continue'",
        "the block",
    ),
    "break out of with iter": (
        "with t.trace(0) as tracer:\n    with tracer.iter[:]:\n        ^break",
        "'break' out of a 'with ... iter[...]'",
        "for step in tracer.iter[...]:",
    ),
    "continue out of with all": (
        "with t.trace(0) as tracer:\n"
        "    for i in y:\n"
        "        with tracer.all():\n"
        "            ^continue",
        "'continue' out of a 'with ... iter[...]'",
        "for step in tracer.iter[...]:",
    ),
    "break in with below with iter": (
        "with t.trace(0) as tracer:\n"
        "    with tracer.iter[:]:\n"
        "        with lock:\n"
        "            ^break",
        "'break' out of a 'with ... iter[...]'",
        "for step in tracer.iter[...]:",
    ),
    "yield": (
        "def f():\n    with t.trace(0):\n        ^yield x",
        "'yield'",
        "yield it after the block",
    ),
    "yield in an expression": (
        "def f():\n    with t.trace(0):\n        z = 1 + (^yield)",
        "'yield'",
        "yield it after the block",
    ),
    "yield from": (
        "def f():\n    with t.trace(0):\n        ^yield from x",
        "'yield from'",
        "yield them after the block",
    ),
    "yield in a default": (
        "def f():\n    with t.trace(0):\n        def g(p=(^yield)): pass",
        "'yield'",
        "after the block",
    ),
    "yield in a default of a lambda": (
        "def f():\n    with t.trace(0):\n        g = lambda p=(^yield): p",
        "'yield'",
        "after the block",
    ),
    "yield in the first iterable": (
        "def f():\n    with t.trace(0):\n        g = list(i for i in (^yield))",
        "'yield'",
        "after the block",
    ),
    "yield in a keyword of a class": (
        "def f():\n    with t.trace(0):\n        class K(metaclass=(^yield)): pass",
        "'yield'",
        "after the block",
    ),
    "await": (
        "async def f():\n    with t.trace(0):\n        ^await x",
        "'await'",
        "await before or after the block",
    ),
    "async with": (
        "async def f():\n    with t.trace(0):\n        ^async with x: pass",
        "'async with'",
        "around the block",
    ),
    "async for": (
        "async def f():\n    with t.trace(0):\n        ^async for i in x: pass",
        "'async for'",
        "before the block",
    ),
    "async comprehension": (
        "async def f():\n    with t.trace(0):\n        z = [i async for ^i in x]",
        "an asynchronous comprehension",
        "before the block",
    ),
    "global": (
        "def f():\n    with t.trace(0):\n        ^global x, y",
        "'global x, y'",
        "assign the global after the block",
    ),
    "nonlocal": (
        "def f(x):\n    def g():\n        with t.trace(0):\n            ^nonlocal x",
        "'nonlocal x'",
        "assign the name after the block",
    ),
    "import star": (
        "with t.trace(0):\n    ^from os import *",
        "'import *'",
        "import the names that the block uses",
    ),
}  # fmt: skip

ALLOWED = {
    "return in a function": "def g():\n    return a.output",
    "yield in a function": "def g():\n    yield a.output\n    yield from y",
    "yield in a lambda": "g = lambda: (yield)",
    "await in a function": (
        "async def g():\n"
        "    await x\n"
        "    async with x: pass\n"
        "    async for i in x: pass\n"
        "    return [i async for i in x]"
    ),
    "global and nonlocal in a function": (
        "y = 1\ndef g():\n    global w\n    w = 1\n    def h():\n        nonlocal v\n    v = 1"
    ),
    "loops of the block's own": (
        "for i in y:\n    if i: break\n    continue\nwhile x:\n    break\nelse:\n    pass"
    ),
    "a loop in with iter": (
        "with tracer.iter[:]:\n    for i in y:\n        if i: break\n        continue"
    ),
    "break out of for iter": "for i in tracer.iter[:]:\n    if i: break\n    continue",
    "a loop in an invoke": "with tracer.invoke(0):\n    for i in y:\n        break",
    "break out of a with": "for i in y:\n    with lock:\n        break",
    "a loop in a function in a loop": (
        "for i in y:\n    def g():\n        for j in y:\n            break\n        return 1"
    ),
    "backward by itself": "loss.backward()\nloss.sum().backward(retain_graph=True)",
    "imports": "import os.path\nfrom os import path as p",
    "a class": "class K:\n    def f(self):\n        return super().f()",
}  # fmt: skip


def marked_place(source: str) -> tuple[str, int, int]:
    before, _, after = source.partition("^")
    line = before.count("\n") + 1
    return before + after, line, len(before) - (before.rfind("\n") + 1)


@pytest.mark.parametrize("construct", REFUSED)
def test_a_construct_is_refused_with_its_line_and_a_way_out(construct):
    marked, what, remedy = REFUSED[construct]
    source, line, column = marked_place(marked)
    with pytest.raises(UnsupportedSyntaxError) as caught:
        lower(source)
    error = caught.value
    assert (error.filename, error.lineno, error.offset) == (FILENAME, line, column + 1)
    assert error.text is not None
    assert error.text.strip("\n") == source.splitlines()[line - 1]
    found, _, advice = (error.msg or "").partition("; ")
    assert found.startswith(what)
    assert remedy in advice


@pytest.mark.parametrize("construct", ALLOWED)
def test_a_construct_that_stays_inside_is_not_refused(construct):
    body = textwrap.indent(ALLOWED[construct], "    ")
    program = lower(f"with t.trace(0) as tracer:\n{body}\n")
    assert program.line == 1


def test_the_first_of_several_is_named():
    with pytest.raises(UnsupportedSyntaxError) as caught:
        lower("def f():\n    with t.trace(0):\n        global x\n        return x")
    assert caught.value.lineno == 3


def test_columns_count_characters():
    source, _, column = marked_place("def f():\n    with t.trace(0):\n        é = 'ü'; ^return é")
    with pytest.raises(UnsupportedSyntaxError) as caught:
        lower(source)
    assert caught.value.offset == column + 1
