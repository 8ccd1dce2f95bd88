"""Random blocks mean what the same statements mean on values that plain hooks have recorded.

A block is drawn together with the modules that it looks into, and run three ways: by this package,
in plain Python on a reference, and in a function that a block calls, where every access is
carried. What it binds, what it notes down on the way, and what it raises and where is the same.
"""

import ast
import linecache
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nnsight_dsl import NNsight, save
from nnsight_dsl.transforms.requests import PORTS
from tests.language import elsewhere
from tests.language.random_blocks import KINDS, Stack, Writer
from tests.language.reference import Reference, kept, without_save

EXAMPLES = 1200
LONG = 5000
ENOUGH = 20


@dataclass(frozen=True)
class Drawn:
    """A block, the kinds of the layers below it, and whether it stands in a function."""

    kinds: tuple[str, ...]
    body: str
    in_function: bool


@st.composite
def drawn_blocks(draw: Any) -> Drawn:
    def below(n: int) -> int:
        return int(draw(st.integers(0, n - 1)))

    kinds = tuple(KINDS[below(3)] for _ in range(draw(st.integers(2, 4))))
    return Drawn(kinds, Writer(below, kinds).block(2), draw(st.booleans()))


FILENAME = "<a random block>"
HEAD = "a, b, t = 1.5, 2, torch.ones(2, 3)\n"
RESULT = "result = [tell(lambda: a), tell(lambda: b), tell(lambda: c), tell(lambda: t)]"


def block_text(drawn: Drawn) -> str:
    body = indent(f"{drawn.body}\n{RESULT}.save()", "    ")
    text = f"{HEAD}with model.trace(x):\n{body}\n"
    if drawn.in_function:
        return f"def user():\n{indent(text, '    ')}    return result\nresult = user()\n"
    return text


def carried_text(drawn: Drawn) -> str:
    body = f"{HEAD}{drawn.body}\n{RESULT}\nreturn result"
    block = "with model.trace(x):\n    result = save(steps())\n"
    return f"def steps():\n{indent(body, '    ')}\n{block}"


@dataclass(frozen=True)
class Outcome:
    """What running some statements came to."""

    result: Any
    log: list[Any]
    error: tuple[str | None, ...] | None
    line: str | None
    lines: frozenset[int]


def names_of(model: Any) -> dict[str, Any]:
    log: list[Any] = []

    def note(value: Any) -> Any:
        log.append(("note", value))
        return value

    def tell(value_of: Callable[[], Any]) -> Any:
        try:
            return kept(value_of())
        except NameError:
            return "not bound"

    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    libraries = {"elsewhere": elsewhere, "torch": torch, "save": save}
    return {
        **libraries, "model": model, "layers": model.layers, "x": x, "log": log, "note": note,
        "tell": tell,
    }  # fmt: skip


def outcome(text: str, names: dict[str, Any], *, plainly: bool = False) -> Outcome:
    linecache.cache[FILENAME] = (len(text), None, text.splitlines(True), FILENAME)
    code = without_save(text, FILENAME) if plainly else compile(text, FILENAME, "exec")
    error, line, lines = None, None, frozenset[int]()
    try:
        exec(code, names)
    except Exception as raised:
        error = _described(raised)
        entries = [
            entry
            for entry in traceback.extract_tb(raised.__traceback__)
            if entry.filename == FILENAME
        ]
        line = text.splitlines()[(entries[-1].lineno or 0) - 1].strip()
        lines = frozenset(entry.lineno or 0 for entry in entries)
    return Outcome(names.get("result"), names["log"], error, line, lines)


_OURS = ("OutOfOrderError", "NotCalledError")


def _described(error: BaseException | None) -> tuple[str | None, ...]:
    if error is None:
        return (None,)
    kind = {"UnboundLocalError": "NameError"}.get(type(error).__name__, type(error).__name__)
    if isinstance(error, BaseExceptionGroup):
        return (kind, *(part for one in error.exceptions for part in _described(one)))
    said = "" if kind in (*_OURS, "NameError") else str(error)
    return kind, said, *_described(error.__cause__)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def assert_equal(found: Any, expected: Any, about: str) -> None:
    assert same(found, expected), f"{found}\ninstead of\n{expected}\n{about}"


def assert_three_ways_agree(drawn: Drawn) -> None:
    text = block_text(drawn)
    expected = outcome(text, names_of(Reference(Stack(drawn.kinds))), plainly=True)
    model = NNsight(Stack(drawn.kinds))
    found = outcome(text, names_of(model))
    carried = outcome(carried_text(drawn), names_of(model))
    for way, one in (("lowered", found), ("carried", carried)):
        about = f"{way}, {drawn.kinds}\n{text}"
        assert_equal((one.error, one.line), (expected.error, expected.line), about)
        assert_equal(one.log, expected.log, about)
        assert_equal(one.result, expected.result, about)
    first = text.splitlines().index(next(n for n in text.splitlines() if "model.trace" in n)) + 1
    last = len(text.splitlines())
    assert all(first <= line <= last for line in found.lines), f"{found.lines}\n{text}"


def constructs_with_access(body: str) -> Iterator[str]:
    """Name each construct of a text that has an access inside."""
    for node in ast.walk(ast.parse(body)):
        if any(isinstance(n, ast.Attribute) and n.attr in PORTS for n in ast.walk(node)):
            yield type(node).__name__


WANTED = {
    "AnnAssign", "Assert", "Assign", "AugAssign", "BinOp", "BoolOp", "Call", "ClassDef", "Compare",
    "DictComp", "ExceptHandler", "Expr", "For", "FormattedValue", "FunctionDef", "GeneratorExp",
    "If", "IfExp", "JoinedStr", "Lambda", "List", "ListComp", "Match", "NamedExpr", "Raise",
    "Return", "SetComp", "Starred", "Subscript", "Try", "TryStar", "Tuple", "While", "With",
    "comprehension", "match_case", "withitem",
}  # fmt: skip


@pytest.mark.timeout(900)
def test_random_blocks_mean_the_same_in_three_ways(request: pytest.FixtureRequest) -> None:
    drawn: Counter[str] = Counter()

    @settings(
        max_examples=LONG if request.config.getoption("--long") else EXAMPLES,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(drawn_blocks())
    def check(block: Drawn) -> None:
        drawn.update(set(constructs_with_access(block.body)))
        assert_three_ways_agree(block)

    check()
    assert {name: drawn[name] for name in WANTED if drawn[name] < ENOUGH} == {}
