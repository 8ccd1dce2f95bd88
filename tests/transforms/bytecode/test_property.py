"""Random functions, tapped at random operations, do what they did."""

from __future__ import annotations

import linecache
import textwrap
import traceback
import warnings
from collections import Counter
from random import Random
from types import FunctionType
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nnsight_dsl.transforms.bytecode.operations import operations_of
from nnsight_dsl.transforms.bytecode.verify import faults_in

from .samples import tapped

EXAMPLES = 250
FILENAME = "<random function>"

NAMES = ("a", "b", "c", "x", "y")


EXPRESSIONS = (
    "{0}",
    "({0} + {1})",
    "({0} - {1})",
    "({0} * {1})",
    "({0} // {1})",
    "({0} % {1})",
    "({0} & 3 ^ {1})",
    "(-{0})",
    "({0} if {1} < {2} else 4)",
    "({0} if {1} == {2} else {1})",
    "(0 < {0} <= {1})",
    "(not {0})",
    "({0} and {1} or {2})",
    "max({0}, {1}, key=abs)",
    "max(*[{0}, {1}], {2})",
    "helper({0}, k={1})",
    "helper({0}, **{{'k': {1}}})",
    "[{0}, {1}, {2}][-1]",
    "[{0}, {1}][{2}]",
    "sum([i + {0} for i in range(3) if i != {1}])",
    "sum(i * {0} for i in (1, 2))",
    "len([{0}, {1}][0:1])",
    "(lambda z: z + {0})({1})",
    "({0} in [{1}, 1])",
    "({0} is not obj)",
    "(w := {0})",
    "obj.method({0}).value",
)
SIMPLE = (
    "{n} = {0}",
    "{n} += {0}",
    "{n} = w = {0}",
    "{n}, (w, *v) = {0}, (1, {1}, 3)",
    "log.append({0})",
    "log[0] = {0}",
    "return {0}, {n}",
    "assert {0} != 17, {1}",
)
COMPOUND = (
    "if {0}:\n{body}\nelse:\n{other}",
    "for {n} in range(3):\n{inside}",
    "while len(log) < 4:\n    log.append({0})\n{inside}",
    "try:\n{body}\nexcept ZeroDivisionError as e:\n    log.append(str(e))",
    "try:\n{body}\nfinally:\n    log.append({0})",
    "with obj as o:\n{body}",
    "def inner(z={0}):\n    return z + {n}\n{n} = inner({1})",
    "def items():\n    yield {0}\n    yield {n}\n{n} = sum(items())",
)


def expression(random: Random, depth: int = 2) -> str:
    """Make an expression over a few numbers; some of them raise."""
    if depth == 0 or random.random() < 0.2:
        return random.choice([*NAMES, "1", "2", "-3", "0"])
    form = random.choice(EXPRESSIONS)
    return form.format(*(expression(random, depth - 1) for _ in range(3)))


def block(random: Random, depth: int = 2, *, in_loop: bool = False) -> str:
    """Make some statements."""
    made_ones = []
    for _ in range(random.randint(1, 3)):
        forms = [*SIMPLE, *(COMPOUND if depth else ()), *(("continue", "break") if in_loop else ())]
        form = random.choice(forms)
        parts = {
            key: textwrap.indent(
                block(random, depth - 1, in_loop=in_loop or key == "inside"), "    "
            )
            for key in ("body", "other", "inside")
            if f"{{{key}}}" in form
        }
        values = (expression(random), expression(random))
        made_ones.append(form.format(*values, n=random.choice(NAMES), **parts))
    return "\n".join(made_ones)


class Object:
    """Something with a method, that can be entered."""

    value = 2

    def __init__(self) -> None:
        self.entered = 0

    def method(self, x: Any) -> Object:
        self.value = x
        return self

    def __enter__(self) -> Object:
        self.entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.entered -= 1


def helper(x: Any, k: Any = 1) -> Any:
    return x - k


def made(body: str) -> FunctionType:
    """Compile a function, with its text at hand for tracebacks."""
    text = (
        "def function(a, b, x, y, log, obj):\n    c = w = 1\n"
        f"{textwrap.indent(body, '    ')}\n    return a, b, c, x, y, w\n"
    )
    linecache.cache[FILENAME] = (len(text), None, text.splitlines(True), FILENAME)
    names: dict[str, Any] = {"helper": helper}
    with warnings.catch_warnings():
        # a random text calls a number now and then, of which Python warns
        warnings.simplefilter("ignore", SyntaxWarning)
        code = compile(text, FILENAME, "exec")
    exec(code, names)
    function = names["function"]
    assert isinstance(function, FunctionType)
    return function


def outcome(function: FunctionType) -> Any:
    """Run a function: what it returns or raises, through which lines, and what it did."""
    log: list[Any] = [0]
    obj = Object()
    try:
        result = function(1, 2, 3, 0, log, obj)
    except Exception as error:
        entries = traceback.extract_tb(error.__traceback__)
        lines = [entry.lineno for entry in entries if entry.filename == FILENAME]
        result = (type(error), str(error), lines)
    return repr(result), repr(log), obj.entered


def test_random_functions_tapped_at_random_do_what_they_did() -> None:
    tapped_kinds: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(st.integers(0, 2**32), st.booleans())
    def check(seed: int, around: bool) -> None:
        random = Random(seed)
        body = block(random)
        function = made(body)
        operations = operations_of(function.__code__)
        expected = outcome(function)
        for names in (operations, [name for name in operations if random.random() < 0.4]):
            copy, log = tapped(function, names, around=around)
            assert faults_in(copy.__code__, function.__code__) == [], body
            assert outcome(copy) == expected, body
            tapped_kinds.update(operations[name].kind for name in {entry[0] for entry in log})

    check()
    assert all(tapped_kinds[kind] > 100 for kind in ("call", "operator", "local", "return"))
    assert tapped_kinds["subscript"] > 20


def test_a_random_edit_is_the_edit_in_the_text() -> None:
    """The value of one assignment, replaced by a tap and in the text."""

    @settings(max_examples=EXAMPLES // 2)
    @given(st.integers(0, 2**32), st.integers(-5, 5))
    def check(seed: int, new: int) -> None:
        random = Random(seed)
        before, value, after = block(random, 1), expression(random), block(random, 1)
        function = made(f"{before}\nmarked = {value}\n{after}\nlog.append(marked)")
        by_hand = made(f"{before}\nmarked = [{value}, {new}][1]\n{after}\nlog.append(marked)")
        # what stands behind a return is no code
        assume("marked" in operations_of(function.__code__))
        changed, _ = tapped(function, ["marked"], changes={"marked": {"value": new}})
        found, wanted = outcome(changed), outcome(by_hand)
        assert found == wanted, before

    check()


def test_partials_leave_no_frame() -> None:
    """What is called around an operation is called from the function's own frame."""
    copy, _ = tapped(made("return helper(1, k='a')"), around=True)
    try:
        copy(1, 2, 3, 4, [], None)
    except TypeError as error:
        entries = traceback.extract_tb(error.__traceback__)
    assert [entry.name for entry in entries][1:] == ["function", "helper"]
