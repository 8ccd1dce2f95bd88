"""The accesses of a block in order of evaluation, with their paths and conditions.

The accesses are the states that the lowering lists, plus the skips of modules. Each has the path
of its module, if the text determines it, and the conditions under which it is evaluated. Most
rules compare two accesses: `Machine.follows` decides whether one is certain to come after the
other, in the same step of the same machine.

A path may go through a name. After `layer = model.transformer.h[3]`, `layer.output` is an access
of that module; in `for layer in model.transformer.h:` it is the same unknown module throughout
one round (a `Round`). A name that is bound more than once is not resolved.

    with model.trace("Hello"):
        layer = model.transformer.h[3]
        hidden = layer.output       # Access(verb="read", path=("transformer", "h", 3), ...)
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
    """An unknown index that is the same throughout one round of a loop.

    Attributes:
        loop: identity of the loop's node.
        name: the loop variable.
    """

    loop: int
    name: str

    def __str__(self) -> str:
        return self.name


Item = str | int | Round
Path = tuple[Item, ...]
ModelKey = tuple[str, Path]
"""The spelling of a model in a text: `("self", ("model",))` is `self.model`."""


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """One access of a block.

    Attributes:
        number: position in the order of evaluation.
        node: its node.
        verb: `"read"`, `"write"` or `"skip"`.
        port: the port, or `"skip"`.
        model: the spelling of the model, None if the text does not determine it.
        path: the path of the module below that model, None if it is computed.
        above: the path of that model, if it is known to be a part of the one that runs.
        conditions: the conditions under which it is evaluated.
        step: identity of the enclosing loop over steps (0 if there is none) and the number of
            `.next()` calls before it; None if the step is uncertain. Two accesses with equal
            values are in the same step.
    """

    number: int
    node: ast.Attribute
    verb: str
    port: str
    model: ModelKey | None
    path: Path | None
    conditions: Conditions
    step: tuple[int, int] | None
    above: Path = ()

    @property
    def is_known(self) -> bool:
        """Whether the text determines the module."""
        return self.model is not None and self.path is not None

    @property
    def location(self) -> str:
        """The location as errors of a run spell it, or the user's text if it is not determined."""
        path = None if self.path is None else (*self.above, *self.path)
        if path is None or any(isinstance(one, Round) or str(one)[0] == "-" for one in path):
            return ast.unparse(self.node)
        return ".".join(map(str, [*(path or ("model",)), self.port]))

    @property
    def place(self) -> str:
        """The path of the module, spelled like `location`."""
        return self.location.rpartition(".")[0]

    @property
    def is_early(self) -> bool:
        """Whether it is served before the module's forward runs."""
        return self.port in ("input", "inputs", SKIP)


class Machine:
    """The accesses of one block, without those of the blocks inside it.

    Attributes:
        block: the block.
        names: resolves the paths behind its names.
        calls: the calls in it.
        accesses: its accesses, in order of evaluation.
    """

    def __init__(self, block: Block, names: Names, models: frozenset[ModelKey]) -> None:
        self.block = block
        self.names = names
        self._models = models
        self._tree: Tree = block.tree
        nodes = list(block.nodes())
        self.calls = [node for node in nodes if isinstance(node, ast.Call)]
        moves = sorted(
            end_of(call)
            for call in self.calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "next"
        )
        self._moves = moves
        # if True, the steps of the accesses are unknown: a `.next()` may or may not run, or other
        # code may call it
        self._has_unclear_moves = self.tracer_escapes() or any(
            not self.conditions(call).always
            for call in self.calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "next"
        )
        self._stops = [(end_of(node), self.conditions(node)) for node in nodes if _is_stop(node)]
        mine = {(n.lineno, n.col_offset, n.attr): n for n in nodes if isinstance(n, ast.Attribute)}
        self.accesses = sorted(self._accesses(mine), key=lambda access: access.number)

    def conditions(self, node: ast.AST) -> Conditions:
        """Return the conditions under which a node is evaluated, given that the block runs."""
        return self._tree.conditions(node, self.block.node)

    def _accesses(self, mine: dict[tuple[int, int, str], ast.Attribute]) -> Iterator[Access]:
        states = states_of(self.block.body, self._tree.lines)
        skips = [call for call in self.calls if is_skip(call)]
        ordered: list[tuple[tuple[int, int], ast.Attribute, State | None]] = []
        for state in states:
            node = mine.get((state.line, state.column, state.port))
            if node is not None:
                ordered.append(((state.number, 0), node, state))
        # a skip is requested when its argument has been evaluated: at the end of its call
        for call in skips:
            before = sum(end_of(mine_node) <= end_of(call) for _, mine_node, _ in ordered if _)
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
                model[1] if model is not None and self.names.is_exact(model[0]) else (),
            )

    def resolve(self, node: ast.expr) -> tuple[ModelKey, Path] | None:
        """Return the model and the path that an expression means, None if it is computed."""
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
        """Return whether a failure at an access would be an error.

        It would not if the access is deferred to a function that may never run, if an enclosing
        `try` or `pytest.raises` expects the error, or if the block always stops before it.
        """
        if access.conditions.is_deferred or access.conditions.is_handled:
            return False
        start = access.node.lineno, access.node.col_offset
        return not any(
            stop <= start and conditions.cover(access.conditions)
            for stop, conditions in self._stops
        )

    def tracers(self) -> set[str]:
        """Return the names of the tracers of this block and of the enclosing blocks."""
        block: Block | None = self.block
        found = set()
        while block is not None:
            if block.tracer is not None:
                found.add(block.tracer)
            block = block.parent
        return found

    def is_result(self, access: Access) -> bool:
        """Return whether an access is for the result of the run, which is served last."""
        if access.port == "result":
            value = access.node.value
            return isinstance(value, ast.Name) and value.id in self.tracers()
        return access.is_known and access.path == ("generator",) and access.port == "output"

    def is_of_module(self, access: Access) -> bool:
        """Return whether an access is for a module of a model that the text determines."""
        return access.is_known and access.port != "grad" and is_module(access.path or ())

    def pairs(self) -> Iterator[tuple[Access, Access]]:
        """Iterate over pairs of an access and one that is certain to follow it in the same step.

        Pairs whose second access is expected to fail, or is never reached, are left out.
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
        end = end_of(node)
        return loop, sum(move <= end for move in self._moves)

    def tracer_escapes(self) -> bool:
        """Return whether the tracer is passed to a call, which may do anything with it."""
        names = self.tracers()
        return any(
            isinstance(argument, ast.Name) and argument.id in names
            for call in self.calls
            for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        )


class Names:
    """Resolve the paths behind names.

    For a block that is being entered, `meanings` maps names to the places they are bound to outside
    the block.
    """

    def __init__(
        self, bindings: Bindings, meanings: Mapping[str, tuple[str, Path]] | None = None
    ) -> None:
        self.bindings = bindings
        self._given = meanings or {}

    def known(self, name: str) -> tuple[str, Path]:
        """Return the path that a name means outside the block; the name itself if it is unknown."""
        return self._given.get(name, (name, ()))

    def is_exact(self, root: str) -> bool:
        """Return whether paths from a name are known to begin at the root of a model."""
        return any(root == known for known, _ in self._given.values())

    def spelled(self, node: ast.expr, depth: int = 0) -> tuple[str, Path] | None:
        """Return the name from which a path starts, and the path; None for other expressions."""
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
        """Return the path that a statement binds to a name, None if it binds another value."""
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
"""How many names a path may go through; a bound for names that are defined by each other."""


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


def end_of(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "end_lineno", 0) or 0, getattr(node, "end_col_offset", 0) or 0


def is_below(path: Path, above: Path) -> bool:
    """Return whether a path leads to a module strictly inside another one."""
    return len(path) > len(above) and path[: len(above)] == above


def is_module(path: Path) -> bool:
    """Return whether a path leads to a module, not to a generator, a tracer or an operation."""
    return not path or (path[0] not in _NOT_MODULES and SOURCE not in path)
