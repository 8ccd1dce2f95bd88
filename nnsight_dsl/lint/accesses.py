"""What a block asks of its model, in the order in which it does.

The accesses are the states of the block, as the lowering lists them; with each go the path that
it means, as far as the text tells, and what it stands under. From these follows what can be said
of two of them: whether one is certain to come after the other, in the same step of the same
machine.

A path may go over a name: `layer = model.transformer.h[3]` makes `layer.output` an access of that
module, and in `for layer in model.transformer.h:` it is one module in each round, whichever. A
name that is bound more than once means nothing here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnsight_dsl.transforms.source.accesses import State, states_of
from nnsight_dsl.transforms.source.unsupported import is_step_block, is_steps

from .bindings import Bindings, Unclear
from .blocks import MODEL_PORTS, Block
from .tree import Conditions, Tree

SKIP = "skip"
_NOT_MODULES = frozenset({"generator", "tracer"})
SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Round:
    """An index that is the same within one round of a loop: which one is not known."""

    loop: int
    name: str

    def __str__(self) -> str:
        return self.name


Item = str | int | Round
Path = tuple[Item, ...]
ModelKey = tuple[str, Path]
"""How a text spells a model: `("self", ("model",))` is `self.model`."""


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """One access of a block, in its surroundings.

    Attributes:
        number: position in the order of evaluation.
        node: its node.
        verb: `"read"`, `"write"` or `"skip"`.
        port: the port, or `"skip"`.
        model: how the text spells the model; None where it does not tell.
        path: the module below that model; None where it is computed.
        conditions: what has to happen for it to be evaluated.
        step: the loop over steps it stands in and the moves to a next step before it; None
            where the step cannot be told.
    """

    number: int
    node: ast.Attribute
    verb: str
    port: str
    model: ModelKey | None
    path: Path | None
    conditions: Conditions
    step: tuple[int, int] | None

    @property
    def is_known(self) -> bool:
        """Whether the text tells which module is meant."""
        return self.model is not None and self.path is not None

    @property
    def location(self) -> str:
        """The location, as errors of a run spell it where the text tells."""
        path = self.path
        if path is None or any(isinstance(one, Round) or str(one)[0] == "-" for one in path):
            return ast.unparse(self.node)
        return ".".join(map(str, [*(path or ("model",)), self.port]))

    @property
    def place(self) -> str:
        """The module, as errors of a run spell it where the text tells."""
        return self.location.rpartition(".")[0]

    @property
    def is_early(self) -> bool:
        """Whether it is served before the module is called."""
        return self.port in ("input", "inputs", SKIP)


class Machine:
    """What one block asks for, without the blocks inside it.

    Attributes:
        block: the block.
        names: what its names mean.
        calls: the calls in it.
        accesses: its accesses, in order.
    """

    def __init__(self, block: Block, names: Names, models: frozenset[ModelKey]) -> None:
        self.block = block
        self.names = names
        self._models = models
        self._tree: Tree = block.tree
        nodes = list(block.nodes())
        self.calls = [node for node in nodes if isinstance(node, ast.Call)]
        moves = sorted(
            _end(call)
            for call in self.calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "next"
        )
        self._moves = moves
        self._has_unclear_moves = self.tracer_escapes() or any(
            not self.conditions(call).always
            for call in self.calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "next"
        )
        self._stops = [(_end(node), self.conditions(node)) for node in nodes if _is_stop(node)]
        mine = {(n.lineno, n.col_offset, n.attr): n for n in nodes if isinstance(n, ast.Attribute)}
        self.accesses = sorted(self._accesses(mine), key=lambda access: access.number)

    def conditions(self, node: ast.AST) -> Conditions:
        """Return what has to happen for a node to be evaluated, once the block runs."""
        return self._tree.conditions(node, self.block.node)

    def _accesses(self, mine: dict[tuple[int, int, str], ast.Attribute]) -> Iterator[Access]:
        states = states_of(self.block.body, self._tree.lines)
        skips = [call for call in self.calls if is_skip(call)]
        ordered: list[tuple[tuple[int, int], ast.Attribute, State | None]] = []
        for state in states:
            node = mine.get((state.line, state.column, state.port))
            if node is not None:
                ordered.append(((state.number, 0), node, state))
        # a skip is asked for after its argument has been evaluated: at the end of its call
        for call in skips:
            before = sum(_end(mine_node) <= _end(call) for _, mine_node, _ in ordered if _)
            if isinstance(call.func, ast.Attribute):
                ordered.append(((before, -1), call.func, None))
        ordered.sort(key=lambda one: one[0])
        for number, (_, node, found) in enumerate(ordered):
            model, path = self.resolve(node.value) or (None, None)
            yield Access(
                number,
                node,
                SKIP if found is None else found.kind,
                SKIP if found is None else found.port,
                model,
                path,
                self.conditions(node),
                self._step(node),
            )

    def resolve(self, node: ast.expr) -> tuple[ModelKey, Path] | None:
        """Return the model and the path that an expression means; None for what is computed."""
        spelled = self.names.spelled(node)
        if spelled is None:
            return None
        root, path = spelled
        for model in self._models:
            if model[0] == root and path[: len(model[1])] == model[1]:
                return model, path[len(model[1]) :]
        return None

    def follows(self, first: Access, second: Access) -> bool:
        """Return whether `second` is certain to come after `first`, in the same step."""
        return (
            first.number < second.number
            and first.step is not None
            and first.step == second.step
            and first.conditions.cover(second.conditions)
        )

    def may_fail(self, access: Access) -> bool:
        """Return whether a failure at an access is one: it is reached, and nobody waits for it."""
        if access.conditions.is_deferred or access.conditions.is_handled:
            return False
        start = access.node.lineno, access.node.col_offset
        return not any(
            stop <= start and conditions.cover(access.conditions)
            for stop, conditions in self._stops
        )

    def tracers(self) -> set[str]:
        """Return the names of the tracers of this block and of those around it."""
        block: Block | None = self.block
        found = set()
        while block is not None:
            if block.tracer is not None:
                found.add(block.tracer)
            block = block.parent
        return found

    def is_result(self, access: Access) -> bool:
        """Return whether an access is for what the run returns: it is served last of all."""
        if access.port == "result":
            value = access.node.value
            return isinstance(value, ast.Name) and value.id in self.tracers()
        return access.is_known and access.path == ("generator",) and access.port == "output"

    def is_of_module(self, access: Access) -> bool:
        """Return whether an access is for a module of a model that the text names."""
        return access.is_known and access.port != "grad" and is_module(access.path or ())

    def pairs(self) -> Iterator[tuple[Access, Access]]:
        """Iterate over accesses with those certain to come after them in the same step.

        Those that may be expected to fail, or are never reached, are left out.
        """
        for position, second in enumerate(self.accesses):
            if not self.is_of_module(second) or not self.may_fail(second):
                continue
            for first in self.accesses[:position]:
                is_same_model = self.is_of_module(first) and first.model == second.model
                if is_same_model and self.follows(first, second):
                    yield first, second

    def _step(self, node: ast.AST) -> tuple[int, int] | None:
        if self._has_unclear_moves:
            return None
        loop = 0
        for above in self._tree.above(node):
            if above is self.block.node:
                break
            if is_step_loop(above):
                loop = id(above)
                break
        end = _end(node)
        return loop, sum(move <= end for move in self._moves)

    def tracer_escapes(self) -> bool:
        """Return whether the tracer is handed to code that may do anything with it."""
        names = self.tracers()
        return any(
            isinstance(argument, ast.Name) and argument.id in names
            for call in self.calls
            for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        )


class Names:
    """What names mean, where a path goes over them.

    For a block that is being entered, `meanings` has what names stand for outside of it.
    """

    def __init__(
        self, bindings: Bindings, meanings: Mapping[str, tuple[str, Path]] | None = None
    ) -> None:
        self.bindings = bindings
        self._given = meanings or {}

    def known(self, name: str) -> tuple[str, Path]:
        """Return what a name means outside of the block, itself where that is not known."""
        return self._given.get(name, (name, ()))

    def spelled(self, node: ast.expr, depth: int = 0) -> tuple[str, Path] | None:
        """Return the name that a path starts from, and the path; None for what is computed."""
        path: list[Item] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute) and node.attr not in MODEL_PORTS:
                path.append(node.attr)
            elif isinstance(node, ast.Subscript):
                item = self._item(node.slice)
                if item is None:
                    return None
                path.append(item)
            else:
                return None
            node = node.value
        binder = self.bindings.binder(node)
        if isinstance(binder, Unclear) or depth > _MOST_NAMES:
            return None
        before = self.known(node.id)
        if binder is not None:
            before = self._meaning(binder, node.id, depth) or (node.id, ())
        return before[0], (*before[1], *reversed(path))

    def _item(self, node: ast.expr) -> Item | None:
        if isinstance(node, ast.Constant) and type(node.value) in (int, str):
            value: Item = node.value  # type: ignore[assignment]
            return value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self._item(node.operand)
            return -inner if isinstance(inner, int) else None
        if isinstance(node, ast.Name):
            loop = self.bindings.binder(node)
            return Round(id(loop), node.id) if isinstance(loop, ast.For) else None
        return None

    def _meaning(self, binder: ast.stmt, name: str, depth: int) -> tuple[str, Path] | None:
        """Return the path that a statement binds a name to, None where it is no path."""
        if isinstance(binder, ast.Assign) and len(binder.targets) == 1:
            is_name = isinstance(binder.targets[0], ast.Name)
            return self.spelled(binder.value, depth + 1) if is_name else None
        if isinstance(binder, ast.For):
            over, target = binder.iter, binder.target
            if isinstance(over, ast.Call) and isinstance(over.func, ast.Name):
                is_counted = over.func.id == "enumerate" and len(over.args) == 1
                if not is_counted or not isinstance(target, ast.Tuple) or len(target.elts) != 2:
                    return None
                over, target = over.args[0], target.elts[1]
            if isinstance(target, ast.Name) and target.id == name:
                found = self.spelled(over, depth + 1)
                if found is not None:
                    return found[0], (*found[1], Round(id(binder), name))
        return None


_MOST_NAMES = 20
"""How many names a path may go over."""


def is_skip(call: ast.Call) -> bool:
    """Return whether a call is `<anything>.skip(value)`."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "skip"
        and len(call.args) + len(call.keywords) == 1
    )


def is_step_loop(node: ast.AST) -> bool:
    """Return whether a node is a loop over steps, in either form."""
    if isinstance(node, ast.For):
        return is_steps(node.iter)
    return isinstance(node, ast.With) and is_step_block(node)


def _is_stop(node: ast.AST) -> bool:
    if isinstance(node, (ast.Raise, ast.Return, ast.Break, ast.Continue)):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "stop"
    )


def _end(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "end_lineno", 0) or 0, getattr(node, "end_col_offset", 0) or 0


end_of = _end


def is_below(path: Path, above: Path) -> bool:
    """Return whether a path leads to a module inside another one."""
    return len(path) > len(above) and path[: len(above)] == above


def is_module(path: Path) -> bool:
    """Return whether a path is one of a module: not of a generation, a run, or an operation."""
    return not path or (path[0] not in _NOT_MODULES and SOURCE not in path)
