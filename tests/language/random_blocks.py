"""Random statements of a block: every construct of the language, around accesses of model values.

A `Writer` draws from any source of small numbers, so that hypothesis and plain seeds can drive it.
What it accesses mostly comes in the order in which the layers run.
"""

from __future__ import annotations

from collections.abc import Callable
from textwrap import indent
from typing import Any

import torch
from torch import nn

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


class Writer:
    """Writes statements; accesses mostly stand in the order in which layers run.

    Args:
        below: draws a number from 0 up to, but without, the one given.
        kinds: the kind of each layer.
    """

    first_row = "[0]"
    """Index of the first row of numbers in a tensor."""

    def __init__(self, below: Callable[[int], int], kinds: tuple[str, ...]) -> None:
        self._below = below
        self._kinds = kinds
        self._at = 0
        self._count = 0
        self._loops = 0
        self._has_walrus = True
        self._is_quoted = False
        self._written: int | None = None
        self._scope: list[str] = []

    def _choose(self, *options: Any) -> Any:
        return options[self._below(len(options))]

    # what is accessed

    def place(self, layer: int) -> str:
        """Return the expression of a layer."""
        return f"layers[{layer}]"

    def is_tuple(self, layer: int) -> bool:
        """Tell whether a layer returns a tuple."""
        return self._kinds[layer] == "pair"

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
            return f"{self.place(layer)}.input"
        element = "[0]" if self.is_tuple(layer) else ""
        if way == 2:
            return f"elsewhere.read({self.place(layer)}){element}"
        return f"{self.place(layer)}.output{element}"

    def access(self) -> str:
        """A number of one layer."""
        tensor = self.tensor()
        one = f"{tensor}{self.first_row}[1].item()"
        return str(self._choose(f"{tensor}.sum().item()", one, f"len({tensor})"))

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
                f"{self.tensor()}{self.first_row}[:3].tolist()",
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
        place = f"{self.place(layer)}.output"
        if self.is_tuple(layer):
            return str(
                self._choose(
                    f"{place} = ({place}[0] * 0.5, {place}[1])",
                    f"{place}[0][:, 0] += {self.number(1)}",
                    f"elsewhere.read({self.place(layer)})[0][:, 1] = {self.number(1)}",
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
                f"elsewhere.double({self.place(layer)})",
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
        if self.is_tuple(layer):
            item = f"elsewhere.noted(log, {self.access()})"
        else:
            item = self._choose(
                f"elsewhere.Around(log, {self.place(layer)}, {self.place(layer)}) as t",
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
