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
from torch import nn

from nnsight_dsl import NNsight, save
from nnsight_dsl.transforms.requests import PORTS
from tests.language import elsewhere
from tests.language.reference import Reference, kept, without_save

EXAMPLES = 1200
LONG = 5000
ENOUGH = 20

KINDS = ("linear", "nested", "pair")


class Pair(nn.Module):
    """A module that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.inner(x), "second"


class Stack(nn.Module):
    """Layers of several kinds, one after the other."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(len(kinds))
            self.layers = nn.ModuleList([self._layer(kind) for kind in kinds])

    def _layer(self, kind: str) -> nn.Module:
        if kind == "pair":
            return Pair()
        return nn.Linear(3, 3) if kind == "linear" else nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
            if isinstance(x, tuple):
                x = x[0]
        return x


_Draw = Callable[[st.SearchStrategy[int]], int]


class _Writer:
    """Writes statements; accesses mostly stand in the order in which layers run."""

    def __init__(self, draw: _Draw, kinds: tuple[str, ...]) -> None:
        self._draw = draw
        self._kinds = kinds
        self._at = 0
        self._count = 0
        self._loops = 0
        self._has_walrus = True
        self._is_quoted = False
        self._written: int | None = None
        self._scope: list[str] = []

    def _below(self, n: int) -> int:
        return self._draw(st.integers(0, n - 1))

    def _choose(self, *options: Any) -> Any:
        return options[self._below(len(options))]

    # what is accessed

    def _layer(self) -> int:
        if self._written is not None:
            return self._written
        last = len(self._kinds) - 1
        if self._below(24) == 0:
            return self._below(last + 1)
        if not self._loops and self._below(3) == 0:
            self._at = min(self._at + 1, last)
        return self._at

    def tensor(self) -> str:
        """A tensor of one layer, or a name that stands for a tensor."""
        way = self._below(8)
        if way == 0:
            return "t"
        layer = self._layer()
        if way == 1 and layer > self._at:
            return f"layers[{layer}].input"
        element = "[0]" if self._kinds[layer] == "pair" else ""
        if way == 2:
            return f"elsewhere.read(layers[{layer}]){element}"
        return f"layers[{layer}].output{element}"

    def access(self) -> str:
        """A number of one layer."""
        tensor = self.tensor()
        return self._choose(f"{tensor}.sum().item()", f"{tensor}[0, 1].item()", f"len({tensor})")

    # expressions, all of them numbers

    def number(self, depth: int) -> str:
        if depth <= 0 or self._below(5) < 2:
            if self._below(2):
                return self.access()
            return str(self._choose("1", "0.5", "a", "b", *self._scope))
        return str(
            self._choose(
                self._binary,
                self._call,
                self._conditional,
                self._boolean,
                self._comparison,
                self._walrus,
                self._list_comprehension,
                self._set_comprehension,
                self._dict_comprehension,
                self._generator_expression,
                self._lambda,
                self._formatted,
                self._starred,
            )(depth - 1)
        )

    def _binary(self, depth: int) -> str:
        operator = self._choose("+", "-", "*", "//")
        return f"({self.number(depth)} {operator} {self.number(depth)})"

    def _call(self, depth: int) -> str:
        return f"{self._choose('note', 'abs')}({self.number(depth)})"

    def _conditional(self, depth: int) -> str:
        return f"({self.number(depth)} if {self.number(depth)} > 0 else {self.number(depth)})"

    def _boolean(self, depth: int) -> str:
        return f"({self.number(depth)} {self._choose('and', 'or')} {self.number(depth)})"

    def _comparison(self, depth: int) -> str:
        return f"int({self.number(depth)} < {self.number(depth)} <= {self.number(depth)})"

    def _walrus(self, depth: int) -> str:
        value = self.number(depth)
        return f"({self._choose('a', 'b')} := {value})" if self._has_walrus else value

    def _list_comprehension(self, depth: int) -> str:
        return f"sum([{self._comprehension(depth, '{}')}])"

    def _set_comprehension(self, depth: int) -> str:
        return f"len({{{self._comprehension(depth, '{}')}}})"

    def _dict_comprehension(self, depth: int) -> str:
        return f"sum({{{self._comprehension(depth, '{}: {}')}}}.values())"

    def _generator_expression(self, depth: int) -> str:
        return f"{self._choose('any', 'sum', 'note')}({self._comprehension(depth, '{}')})".replace(
            "note(", "max("
        )

    def _comprehension(self, depth: int, element: str) -> str:
        name = "ijkmn"[len(self._scope) % 5]
        allowed, self._has_walrus = self._has_walrus, False
        clauses = f"for {name} in {self._iterable(depth)}"
        if self._below(4) == 0:
            clauses += f" for h in (1, {self.number(0)})"
        self._has_walrus = allowed
        self._scope.append(name)
        self._loops += 1
        if self._below(3) == 0:
            clauses += f" if {self.number(depth)} > -9"
        parts = [self.number(depth) for _ in range(element.count("{}"))]
        self._loops -= 1
        self._scope.pop()
        return f"{element.format(*parts)} {clauses}"

    def _iterable(self, depth: int) -> str:
        return str(
            self._choose(
                "(1, 2)",
                "range(2)",
                f"(2, {self.number(depth)})",
                f"{self.tensor()}[0].tolist()",
                "map(elsewhere.number, layers[:1])",
            )
        )

    def _lambda(self, depth: int) -> str:
        argument = self.number(depth)
        self._scope.append("p")
        text = f"(lambda p: {self.number(depth)})({argument})"
        self._scope.pop()
        return text

    def _formatted(self, depth: int) -> str:
        # its quotes can be nested from Python 3.12 on
        if self._is_quoted:
            return self.access()
        self._is_quoted = True
        text = f"len(f'{{{self.number(depth)}:.3f}}')"
        self._is_quoted = False
        return text

    def _starred(self, depth: int) -> str:
        return f"max(*[{self.number(depth)}, {self.number(depth)}], {self.number(depth)})"

    # statements

    def block(self, depth: int) -> str:
        return "\n".join(self.statement(depth) for _ in range(1 + self._below(3)))

    def _inner(self, depth: int) -> str:
        return indent(self.block(depth), "    ")

    def statement(self, depth: int) -> str:
        if depth <= 0 or self._below(3) == 0:
            return self._simple()
        return str(
            self._choose(
                self._if,
                self._for,
                self._while,
                self._try,
                self._except_star,
                self._with,
                self._function,
                self._class,
                self._match,
            )(depth - 1)
        )

    def _simple(self) -> str:
        simple = self._choose(
            self._assignment,
            self._assignment,
            self._assignment,
            self._write,
            self._write,
            self._other,
        )
        return str(simple())

    def _assignment(self) -> str:
        name = self._choose("a", "b", "c")
        pattern = self._choose(
            f"{name} = {{n}}",
            f"a = {name} = {{n}}",
            f"{name}, b = {{n}}, {{n}}",
            f"(a, *{name}), b = [{{n}}, 1], {{n}}",
            f"{name} += {{n}}",
            f"{name}: float = {{n}}",
            "t = {t}",
            "t = {t} * 2; c = {n}",
            f"{name} = note({{n}})",
        )
        return str(pattern).format_map(_Lazy(n=lambda: self.number(2), t=self.tensor))

    def _write(self) -> str:
        # what is written comes from the layer itself: one that comes later would be too late
        outer, self._written = self._written, self._layer()
        text = self._written_to(self._written)
        self._written = outer
        return text

    def _written_to(self, layer: int) -> str:
        place = f"layers[{layer}].output"
        if self._kinds[layer] == "pair":
            return str(
                self._choose(
                    f"{place} = ({place}[0] * 0.5, {place}[1])",
                    f"{place}[0][:, 0] += {self.number(1)}",
                    f"elsewhere.read(layers[{layer}])[0][:, 1] = {self.number(1)}",
                )
            )
        return str(
            self._choose(
                f"{place} = {place} * 0.5",
                f"{place} = {place} + {self.number(1)}",
                f"{place} += {self.number(1)}",
                f"{place}[:, 0] = {self.number(1)}",
                f"{place}[:, -1] -= {self.number(1)}",
                f"t = {place} = {place} - 1",
                f"elsewhere.double(layers[{layer}])",
            )
        )

    def _other(self) -> str:
        leaving = ("break", "continue") if self._loops else ("pass",)
        pattern = self._choose(
            "assert {n} > 0, {n}",
            "raise ValueError({n})",
            "raise ValueError({n}) from KeyError({n})",
            "note({n})",
            "log.append({n})",
            "del a",
            "del c",
            "import math; b = math.floor({n})",
            *leaving,
        )
        return str(pattern).format_map(_Lazy(n=lambda: self.number(1)))

    def _if(self, depth: int) -> str:
        text = f"if {self.number(1)} > 0:\n{self._inner(depth)}"
        if self._below(2):
            text += f"\nelif {self.number(1)}:\n{self._inner(depth)}"
        if self._below(2):
            text += f"\nelse:\n{self._inner(depth)}"
        return text

    def _looped(self, depth: int) -> str:
        self._loops += 1
        text = self._inner(depth)
        self._loops -= 1
        return text

    def _for(self, depth: int) -> str:
        name = self._choose("a", "b", "c")
        text = f"for {name} in {self._iterable(1)}:\n{self._looped(depth)}"
        return text + (f"\nelse:\n{self._inner(depth)}" if self._below(2) else "")

    def _while(self, depth: int) -> str:
        self._count += 1
        counter = f"n{self._count}"
        text = (
            f"{counter} = 0\nwhile {counter} < 2 and {self.number(1)} < 100:\n"
            f"    {counter} += 1\n{self._looped(depth)}"
        )
        return text + (f"\nelse:\n{self._inner(depth)}" if self._below(3) == 0 else "")

    def _try(self, depth: int) -> str:
        text = f"try:\n{self._inner(depth)}\n"
        kind = self._below(3)
        if kind < 2:
            caught = self._choose("ZeroDivisionError", "ValueError as e", "(NameError, TypeError)")
            text += f"except {caught}:\n{self._inner(depth)}\n"
        if kind == 1:
            text += f"else:\n{self._inner(depth)}\n"
        if kind:
            text += f"finally:\n{self._inner(depth)}"
        return text.rstrip("\n")

    def _except_star(self, depth: int) -> str:
        # break and continue may not stand in it
        loops, self._loops = self._loops, 0
        text = f"try:\n{self._inner(depth)}\nexcept* ValueError:\n{self._inner(depth)}"
        self._loops = loops
        return text

    def _with(self, depth: int) -> str:
        layer = self._at
        if self._kinds[layer] == "pair":
            item = f"elsewhere.noted(log, {self.access()})"
        else:
            item = self._choose(
                f"elsewhere.Around(log, layers[{layer}], layers[{layer}]) as t",
                "elsewhere.noted(log, 'm') as m, torch.no_grad()",
                f"(elsewhere.noted(log, {self.access()}), elsewhere.noted(log, 'k') as k)",
                f"elsewhere.noted(log, {self.access()}) as c, torch.no_grad()",
                "torch.no_grad()",
            )
        return f"with {item}:\n{self._inner(depth)}"

    def _function(self, depth: int) -> str:
        self._count += 1
        name = f"f{self._count}"
        self._scope.append("p")
        loops, self._loops = self._loops, 0
        body = f"q = {self.number(1)}\n{self._write()}\nreturn q + {self.number(1)}"
        if self._below(3) == 0:
            body = (
                f"if p > 9: return p\nq = {self.number(1)}\nreturn {name}(p + 5) + {self.access()}"
            )
        self._loops = loops
        self._scope.pop()
        default = self.number(1)
        text = f"def {name}(p={default}):\n{indent(body, '    ')}\n"
        return text + f"{self._choose('a', 'c')} = {name}({self.number(1)})"

    def _class(self, depth: int) -> str:
        self._count += 1
        name = f"C{self._count}"
        # a name that a class body binds is looked up in the module, not in the block
        allowed, self._has_walrus = self._has_walrus, False
        text = f"class {name}:\n    h = {self.number(1)}\n    k = note(h)\nb = {name}.h"
        self._has_walrus = allowed
        return text

    def _match(self, depth: int) -> str:
        return (
            f"match {self.number(1)}:\n"
            f"    case 1 if {self.number(1)}:\n{indent(self._inner(depth), '    ')}\n"
            f"    case {self._choose('c', '_', '2 | 3')}:\n{indent(self._inner(depth), '    ')}"
        )


class _Lazy(dict[str, Callable[[], str]]):
    """Writes each field of a pattern when it comes to it."""

    def __getitem__(self, name: str) -> str:  # type: ignore[override]
        return super().__getitem__(name)()


@dataclass(frozen=True)
class Drawn:
    """A block, the kinds of the layers below it, and whether it stands in a function."""

    kinds: tuple[str, ...]
    body: str
    in_function: bool


@st.composite
def drawn_blocks(draw: Any) -> Drawn:
    kinds = tuple(KINDS[draw(st.integers(0, 2))] for _ in range(draw(st.integers(2, 4))))
    return Drawn(kinds, _Writer(draw, kinds).block(2), draw(st.booleans()))


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
