"""Programs: the compiled form of a block.

A program is immutable and independent of any model: the code object of a generator function, the
table of the block's accesses, its names, the user's text and the lowered text. `Program.start`
makes a generator from it; `nnsight_dsl.runtime` runs the generator.

    program = find_block(frame)
    running = program.start(frame.f_globals, names, injected)
    request = next(running)         # ("read", <envoy>, "output")

The code object belongs to one Python version. To send a program to another process, send its
`recipe` (see `recipes.py`); to cache it on disk, use `program_bytes.py`.
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
    """A lowered block, ready to be run, displayed or sent to another process.

    Attributes:
        kind: `"block"` for an outermost block, else the method that opens the inner block:
            `"invoke"`, `"backward"`, or an opening call such as `"trace"` in a session.
        name: name of the enclosing function, or `<module>`.
        filename: file of the block, as tracebacks name it.
        line: line of the `with` statement.
        source: the user's text of the block.
        lowered: the text that was compiled.
        code: code object of the generator function.
        params: names whose values the generator function takes as arguments, in order.
        bound: names that the block binds.
        saved_names: names that are assigned directly from a `save` call.
        states: the accesses, in order of evaluation.
        plain: the conditions under which the block is plain (see `source/plain.py`), None if it
            cannot be.
        children: programs of the inner blocks, by number.
        fetched: names that are fetched from earlier invokes.
        waits_for: the fetched names that are waited for, because one earlier invoke binds them,
            once.
        unsynchronised: the fetched names that an earlier invoke binds in a loop or more than
            once, so that only a barrier can order binding and read.
        state_blocks: first and last line of each `with` that sets grad mode, autocast and the like.
        first_items: lines that index `.output[0]`, the first row if the output is a tensor.
        looks_outside: True if the block reads names of the enclosing function from its live frame,
            because another function may rebind them (see `source/passes/rebound.py`).
        recipe: text from which another process lowers the outermost block again (see
            `recipes.py`).
        number: index among the outermost block's `all_programs()`.
        outer_is_global: True if names missing from the given mapping fall back to globals and
            builtins: at module level, in class bodies and in `exec`.
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
        """Whether the block contains invokes."""
        return any(child.kind == "invoke" for child in self.children)

    def start(
        self,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        injected: Mapping[str, Any],
    ) -> Running:
        """Make a generator from this program, without running any statement of the block.

        Args:
            user_globals: globals of the user's module, used as the globals of the block.
            names: current values of the names of the enclosing scope.
            injected: values of the names in `nnsight_dsl.transforms.names.INJECTED`.
        """
        return self.started(self.function(user_globals, injected), user_globals, names)

    def function(
        self, user_globals: dict[str, Any], injected: Mapping[str, Any]
    ) -> Callable[..., Running]:
        """Return the generator function, whose arguments are the values of `params`."""
        closure = tuple(CellType(injected[name]) for name in self.code.co_freevars)
        return FunctionType(self.code, user_globals, self.name, None, closure)

    def started(
        self,
        function: Callable[..., Running],
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
    ) -> Running:
        """Make a generator from the current values of the names of the enclosing scope."""
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
        """Return the value of a name outside the block, `MISSING` if it is unbound."""
        value = names.get(name, MISSING)
        if value is MISSING and (fall_back or self.outer_is_global):
            value = user_globals.get(name, MISSING)
            if value is MISSING:
                found = user_globals.get("__builtins__", {})
                known = found if isinstance(found, dict) else vars(found)
                value = known.get(name, MISSING)
        return value

    def names_in(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        """Filter the namespace of a frame of this program down to the names the block binds."""
        bound, left = self.bound, {}
        for name, value in namespace.items():
            if name in bound:
                left[name] = value
        return left

    def all_bound(self) -> frozenset[str]:
        """Return the names bound by this block and by the blocks inside it."""
        return self.bound.union(*(child.all_bound() for child in self.children))

    def all_programs(self) -> Sequence[Program]:
        """Return this program and all programs inside it, in preorder."""
        found = [self]
        for child in self.children:
            found.extend(child.all_programs())
        return found
