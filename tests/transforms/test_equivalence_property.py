"""Random blocks mean what the same statements mean in plain Python.

Blocks are drawn over objects whose `.output` is a plain value, lowered, and driven by hand; what
they bind, what they do to the objects, and what they raise and where is compared with `exec`.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from textwrap import indent

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nnsight_dsl.transforms.requests import PORTS
from tests.transforms.lowering import assert_same_meaning

EXAMPLES = 520
ENOUGH = 20

_Draw = Callable[[st.SearchStrategy[int]], int]


class _Writer:
    """Writes statements and expressions as a source of choices tells it to."""

    def __init__(self, draw: _Draw) -> None:
        self._draw = draw
        self._loops = 0
        self._count = 0
        self._has_walrus = True
        self._scope: list[str] = []

    def _choose(self, *options: str | Callable[[int], str]) -> str | Callable[[int], str]:
        return options[self._draw(st.integers(0, len(options) - 1))]

    def _below(self, n: int) -> int:
        return self._draw(st.integers(0, n - 1))

    # expressions, all of them integers

    def expression(self, depth: int) -> str:
        leaf = self._choose("1", "x", "y", "z", "a.output", "b.output", "c.output[0]", *self._scope)
        if depth <= 0 or self._below(5) < 2:
            return str(leaf)
        chosen = self._choose(
            str(leaf),
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
        )
        return chosen if isinstance(chosen, str) else chosen(depth - 1)

    def _binary(self, depth: int) -> str:
        operator = self._choose("+", "-", "//")
        return f"({self.expression(depth)} {operator} {self.expression(depth)})"

    def _call(self, depth: int) -> str:
        return f"{self._choose('note', 'abs')}({self.expression(depth)})"

    def _conditional(self, depth: int) -> str:
        parts = [self.expression(depth) for _ in range(3)]
        return "({} if {} else {})".format(*parts)

    def _boolean(self, depth: int) -> str:
        return f"({self.expression(depth)} {self._choose('and', 'or')} {self.expression(depth)})"

    def _comparison(self, depth: int) -> str:
        parts = [self.expression(depth) for _ in range(3)]
        return "int({} < {} <= {})".format(*parts)

    def _walrus(self, depth: int) -> str:
        value = self.expression(depth)
        return f"({self._choose('x', 'y', 'z')} := {value})" if self._has_walrus else value

    def _list_comprehension(self, depth: int) -> str:
        return f"sum([{self._comprehension(depth, '{}')}])"

    def _set_comprehension(self, depth: int) -> str:
        return f"len({{{self._comprehension(depth, '{}')}}})"

    def _dict_comprehension(self, depth: int) -> str:
        return f"sum({{{self._comprehension(depth, '{}: {}')}}}.values())"

    def _generator_expression(self, depth: int) -> str:
        return f"{self._choose('any', 'sum')}({self._comprehension(depth, '{}')})"

    def _comprehension(self, depth: int, element: str) -> str:
        # an iterable may hold no walrus
        allowed, self._has_walrus = self._has_walrus, False
        name = "ijkmn"[len(self._scope) % 5]
        clauses = f"for {name} in {self._iterable(depth)}"
        if self._below(4) == 0:
            clauses += f" for h in {self._iterable(depth)}"
        self._has_walrus = allowed
        self._scope.append(name)
        if self._below(2):
            clauses += f" if {self.expression(depth)}"
        parts = [self.expression(depth) for _ in range(element.count("{}"))]
        self._scope.pop()
        return f"{element.format(*parts)} {clauses}"

    def _iterable(self, depth: int) -> str:
        chosen = self._choose("c.output", "(1, 2)", f"range({self.expression(depth)} % 3)")
        return str(chosen)

    def _lambda(self, depth: int) -> str:
        argument = self.expression(depth)
        self._scope.append("p")
        text = f"(lambda p: {self.expression(depth)})({argument})"
        self._scope.pop()
        return text

    def _formatted(self, depth: int) -> str:
        return f'len(f"{{{self.expression(0)}}}")'

    # statements

    def block(self, depth: int) -> str:
        return "\n".join(self.statement(depth) for _ in range(1 + self._below(2)))

    def _inner(self, depth: int) -> str:
        return indent(self.block(depth), "    ")

    def statement(self, depth: int) -> str:
        if depth <= 0 or self._below(4) == 0:
            return self._simple()
        chosen = self._choose(
            self._if,
            self._one_line_if,
            self._for,
            self._while,
            self._try,
            self._with,
            self._function,
            self._match,
        )
        return chosen if isinstance(chosen, str) else chosen(depth - 1)

    def _simple(self) -> str:
        leaving = ("break", "continue") if self._loops else ("pass",)
        pattern = self._choose(
            "{n} = {e}",
            "{n} = {e}",
            "{n} = {m} = {e}",
            "{n}, {m} = {e}, {f}",
            "{n} += {e}",
            "a.output = {e}",
            "a.output += {e}",
            "{n} = b.output = {e}",
            "b.output, {n} = {e}, {f}",
            "d.output = {e}, {f}",
            "c.output[0] = {e}",
            "c.output[1] -= {e}",
            "{n}: int = {e}",
            "a.output = {e}; {n} = {f}",
            "assert {e}, {f}",
            "raise ValueError({e})",
            "note({e})",
            "del {n}",
            *leaving,
        )
        return str(pattern).format(
            n=self._choose("x", "y", "z"),
            m=self._choose("x", "y"),
            e=self.expression(2) if "{e}" in str(pattern) else "",
            f=self.expression(1) if "{f}" in str(pattern) else "",
        )

    def _if(self, depth: int) -> str:
        text = f"if {self.expression(1)}:\n{self._inner(depth)}"
        if self._below(2):
            text += f"\nelif {self.expression(1)}:\n{self._inner(depth)}"
        if self._below(2):
            text += f"\nelse:\n{self._inner(depth)}"
        return text

    def _one_line_if(self, depth: int) -> str:
        return f"if {self.expression(1)}: {self._simple()}; {self._simple()}"

    def _looped(self, depth: int) -> str:
        self._loops += 1
        text = self._inner(depth)
        self._loops -= 1
        return text

    def _for(self, depth: int) -> str:
        name = self._choose("x", "y", "z", "a.output")
        text = f"for {name} in {self._iterable(1)}:\n{self._looped(depth)}"
        return text + (f"\nelse:\n{self._inner(depth)}" if self._below(2) else "")

    def _while(self, depth: int) -> str:
        self._count += 1
        counter = f"n{self._count}"
        return (
            f"{counter} = 0\nwhile {counter} < 2 and {self.expression(1)} < 100:\n"
            f"    {counter} += 1\n{self._looped(depth)}"
        )

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

    def _with(self, depth: int) -> str:
        item = self._choose("guard", "guard as z", "guard as a.output", "guard as x, guard as y")
        return f"with {item}:\n{self._inner(depth)}"

    def _function(self, depth: int) -> str:
        self._count += 1
        name = f"f{self._count}"
        self._scope.append("p")
        loops, self._loops = self._loops, 0
        body = f"q = {self.expression(2)}\na.output = {self.expression(1)}\nreturn q"
        self._loops = loops
        self._scope.pop()
        default = self.expression(1)
        text = f"def {name}(p={default}):\n{indent(body, '    ')}\n"
        return text + f"{self._choose('x', 'z')} = {name}({self.expression(1)})"

    def _match(self, depth: int) -> str:
        return (
            f"match {self.expression(1)}:\n"
            f"    case 1 if {self.expression(1)}:\n{indent(self._inner(depth), '    ')}\n"
            f"    case {self._choose('z', '_', '2 | 3')}:\n{indent(self._inner(depth), '    ')}"
        )


@st.composite
def bodies(draw: _Draw) -> str:
    return _Writer(draw).block(2)


def constructs_with_access(body: str) -> Iterator[str]:
    """Name each construct of a text that has an access inside."""
    for node in ast.walk(ast.parse(body)):
        if any(isinstance(n, ast.Attribute) and n.attr in PORTS for n in ast.walk(node)):
            yield type(node).__name__


WANTED = {
    "AnnAssign", "Assert", "Assign", "AugAssign", "BinOp", "BoolOp", "Call", "Compare", "DictComp",
    "ExceptHandler", "Expr", "For", "FunctionDef", "GeneratorExp", "If", "IfExp", "JoinedStr",
    "Lambda", "ListComp", "Match", "NamedExpr", "Raise", "SetComp", "Subscript", "Try", "Tuple",
    "While", "With", "comprehension", "match_case",
}  # fmt: skip


def test_random_blocks_mean_what_python_means():
    drawn: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(bodies(), st.booleans())
    def check(body: str, in_function: bool) -> None:
        drawn.update(set(constructs_with_access(body)))
        assert_same_meaning(body, in_function=in_function)

    check()
    assert {name: drawn[name] for name in WANTED if drawn[name] < ENOUGH} == {}
