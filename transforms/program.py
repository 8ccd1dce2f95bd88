"""Programs: what a block is lowered to.

A program is immutable and knows nothing of a model: a code object that makes a generator, the
table of its states, its names, the user's text and the lowered one. Starting it gives a
generator; running that is the business of `nnsight_dsl.runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, GeneratorType
from typing import Any, TypeAlias

from .names import MISSING
from .requests import Request
from .source.accesses import State
from .source.plain import Plain

Running: TypeAlias = "GeneratorType[Request, Any, None]"


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A block in the form that can be run, shown and shipped.

    Attributes:
        kind: `"invoke"` or `"backward"` for the block inside a block, else `"block"`.
        name: name of the function (or `<module>`) that the block stands in.
        filename: file the block stands in, as tracebacks name it.
        line: line of the `with` statement.
        source: the user's text of the block.
        lowered: the text that was compiled.
        code: code object of the generator function.
        params: names the generator takes from outside, in order.
        bound: names that the block binds.
        saved_names: names that are assigned straight from a `save` call.
        states: the accesses, in order.
        plain: what has to hold for the block to be plain, None where it is not.
        children: programs of the inner blocks, by number.
        fetched: names that are fetched from earlier invokes.
        waits_for: names that are fetched from an earlier invoke and waited for.
        unsynchronised: names that are fetched from an earlier invoke which binds them in a loop.
        state_blocks: first and last line of each `with` that sets grad mode, autocast and the like.
        first_items: lines that read `.output[0]`, which means the first row where the output is a
            tensor.
        looks_outside: whether names of the enclosing function are looked up in its frame.
        recipe: what the outermost block is lowered from again elsewhere (see `recipes.py`).
        number: place among the outermost block's `all_programs()`.
        outer_is_global: True where names that are not given fall back to globals and builtins.
    """

    kind: str
    name: str
    filename: str
    line: int
    source: str
    lowered: str
    code: CodeType
    params: tuple[str, ...]
    bound: frozenset[str]
    saved_names: frozenset[str]
    states: tuple[State, ...]
    plain: Plain | None
    children: tuple[Program, ...]
    fetched: frozenset[str]
    waits_for: frozenset[str]
    unsynchronised: frozenset[str]
    outer_is_global: bool
    state_blocks: tuple[tuple[int, int], ...]
    first_items: frozenset[int]
    looks_outside: bool
    recipe: str
    number: int

    @property
    def has_invokes(self) -> bool:
        """Whether invokes stand in the block."""
        return any(child.kind == "invoke" for child in self.children)

    def start(
        self,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        injected: Mapping[str, Any],
    ) -> Running:
        """Make a generator of this program; nothing of the block has run yet.

        Args:
            user_globals: globals of the user's module, in which the block's globals are found.
            names: what the names of the enclosing scope stand for now.
            injected: values of the names in `nnsight_dsl.transforms.names.INJECTED`.
        """
        return self.started(self.function(user_globals, injected), user_globals, names)

    def function(
        self, user_globals: dict[str, Any], injected: Mapping[str, Any]
    ) -> Callable[..., Running]:
        """Return the generator function, which takes the values of `params`."""
        closure = tuple(CellType(injected[name]) for name in self.code.co_freevars)
        return FunctionType(self.code, user_globals, self.name, None, closure)

    def started(
        self,
        function: Callable[..., Running],
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
    ) -> Running:
        """Make a generator with what the names of the enclosing scope stand for now."""
        if self.outer_is_global:
            return function(*[self.initial(name, user_globals, names) for name in self.params])
        return function(*[names.get(name, MISSING) for name in self.params])

    def initial(
        self,
        name: str,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        *,
        fall_back: bool = False,
    ) -> Any:
        """Return what a name stands for outside of the block, `MISSING` if it is not bound."""
        value = names.get(name, MISSING)
        if value is MISSING and (fall_back or self.outer_is_global):
            value = user_globals.get(name, MISSING)
            if value is MISSING:
                found = user_globals.get("__builtins__", {})
                known = found if isinstance(found, dict) else vars(found)
                value = known.get(name, MISSING)
        return value

    def names_in(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        """Return those names of a frame of this program that the block itself binds."""
        bound, left = self.bound, {}
        for name, value in namespace.items():
            if name in bound:
                left[name] = value
        return left

    def all_bound(self) -> frozenset[str]:
        """Return the names that this block and the blocks inside it bind."""
        return self.bound.union(*(child.all_bound() for child in self.children))

    def all_programs(self) -> Sequence[Program]:
        """Return this program and all programs inside it, each before those in it."""
        found = [self]
        for child in self.children:
            found.extend(child.all_programs())
        return found
