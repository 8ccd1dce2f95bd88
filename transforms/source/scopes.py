"""Name analysis: the names a block reads, binds, and may read before it binds them.

A lowered block is a function, so every name that it binds becomes a local of that function. This
would break

    x = x + 1

where `x` has a value before the block. So a local that may be read before its first binding
becomes a parameter, which starts with the outside value; so does every name of the enclosing
function that the block reads. Names that are global outside stay global inside.

The analysis is conservative: code that may not run (a branch, the body of a loop) can read a name,
but does not bind it for certain. A name that is taken for read first without need costs one
parameter; one that is missed raises `UnboundLocalError` in the block.
"""

from __future__ import annotations

import ast
import symtable
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from ..names import is_ours


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one block.

    Attributes:
        bound: names the block binds.
        read: names the block, or a function in it, reads from outside.
        read_first: bound names that may be read before they are bound.
        cut_off: names that are bound in the body of a `with` and read outside it. A context
            manager such as `contextlib.suppress(...)` may end the body early and go on.
    """

    bound: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    read_first: frozenset[str] = frozenset()
    cut_off: frozenset[str] = frozenset()


def mangled(name: str, class_name: str | None) -> str:
    """Apply the mangling of private names (`__name`) in the body of a class."""
    if class_name is None or not name.startswith("__") or name.endswith("__"):
        return name
    return f"_{class_name.lstrip('_')}{name}" if class_name.strip("_") else name


def names_of(function_text: str, class_name: str | None = None) -> Names:
    """Analyse the names of a function without parameters, given as text.

    Args:
        function_text: the definition of the function, at the top level of the text.
        class_name: the enclosing class, for the mangling of private names; None if there is none.
    """
    table = symtable.symtable(function_text, "<block>", "exec").get_children()[0]
    tree = ast.parse(function_text).body[0]
    body = tree.body if isinstance(tree, ast.FunctionDef) else []
    local = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_local()}
    # from CPython 3.12 on a function's table includes its comprehensions' variables (PEP 709)
    local -= _loop_names(body) - {name for node in body for name in _stored(node)}
    bound = frozenset(name for name in local if not is_ours(name))
    read: set[str] = set()
    tables = [table]
    while tables:
        current = tables.pop()
        tables.extend(current.get_children())
        read.update(
            symbol.get_name()
            for symbol in current.get_symbols()
            if symbol.is_global() and not symbol.is_declared_global()
        )
    read_first = frozenset(name for name in bound if _may_read_first(body, name))
    users = frozenset(name for name in read if not is_ours(name))
    cut_off = bound & _cut_off(body)
    found = (bound, users, read_first, cut_off)
    return Names(*(_all_mangled(names, class_name) for names in found))


def rebound_beside(node: ast.AST, enclosing: Sequence[ast.AST]) -> frozenset[str]:
    """Collect the names that functions outside a statement declare `nonlocal`, and so may rebind.

    Args:
        node: the statement.
        enclosing: the nodes around it, outermost first.
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    outermost = next((one for one in enclosing if isinstance(one, functions)), None)
    return frozenset() if outermost is None else nonlocals_in(outermost, node)


def nonlocals_in(function: ast.AST, statement: ast.AST) -> frozenset[str]:
    """Collect the names declared `nonlocal` in a function, except inside one statement of it."""
    inside = set(map(id, ast.walk(statement)))
    return frozenset(
        name
        for below in ast.walk(function)
        if isinstance(below, ast.Nonlocal) and id(below) not in inside
        for name in below.names
    )


def _loop_names(body: Sequence[ast.stmt]) -> set[str]:
    """Collect the loop variables of comprehensions."""
    return {
        name.id
        for statement in body
        for loop in ast.walk(statement)
        if isinstance(loop, ast.comprehension)
        for name in ast.walk(loop.target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }


def _cut_off(body: Sequence[ast.stmt]) -> frozenset[str]:
    read = Counter(name for statement in body for name in _loaded(statement))
    return frozenset(
        name
        for statement in body
        for below in ast.walk(statement)
        if isinstance(below, (ast.With, ast.AsyncWith))
        and not all(_is_of_torch(item.context_expr) for item in below.items)
        for name in {name for inner in below.body for name in _stored(inner)}
        if read[name] > sum(one == name for inner in below.body for one in _loaded(inner))
    )


def _loaded(node: ast.AST) -> Iterator[str]:
    for below in ast.walk(node):
        if isinstance(below, ast.Name) and isinstance(below.ctx, ast.Load):
            yield below.id


def _is_of_torch(context: ast.expr) -> bool:
    """Return whether a context manager is one of torch's, none of which swallows an error."""
    while isinstance(context, (ast.Call, ast.Attribute)):
        context = context.func if isinstance(context, ast.Call) else context.value
    return isinstance(context, ast.Name) and context.id == "torch"


def _stored(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement binds, except the loop variables of comprehensions."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Lambda():
            return
        case ast.Name(ctx=ast.Store() | ast.Del()):
            yield node.id
        case ast.alias():
            yield (node.asname or node.name).split(".")[0]
        case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar() if node.name:
            yield node.name
        case ast.MatchMapping() if node.rest:
            yield node.rest
    is_scope = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    for field, value in ast.iter_fields(node):
        if (is_scope and field == "body") or (
            isinstance(node, ast.comprehension) and field == "target"
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _stored(child)


def _all_mangled(names: frozenset[str], class_name: str | None) -> frozenset[str]:
    return frozenset(mangled(name, class_name) for name in names)


class _Use(Enum):
    """The first use of a name by some code, as far as the text determines it."""

    NONE = 0
    READS = 1
    BINDS = 2


def _may_read_first(body: Sequence[ast.stmt], name: str) -> bool:
    return _use_in(body, name) is _Use.READS


def first_use(nodes: Iterable[ast.AST | None], name: str) -> str | None:
    """Return the first use of a name in some code.

    Returns:
        `"reads"` if the code may read the name before it binds it, `"binds"` if it is certain to
        bind it first, None otherwise.
    """
    return {_Use.READS: "reads", _Use.BINDS: "binds"}.get(_use_in(nodes, name))


def _use_in(nodes: Iterable[ast.AST | None], name: str) -> _Use:
    """Return the first certain binding, or possible read, of a name in nodes in running order."""
    for node in nodes:
        use = _Use.NONE if node is None else _use(node, name)
        if use is not _Use.NONE:
            return use
    return _Use.NONE


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(below, ast.Name) and below.id == name for below in ast.walk(node))


def _use(node: ast.AST, name: str) -> _Use:
    match node:
        case ast.Name(id=found):
            is_other = found != name
            return _Use.NONE if is_other else _binds_if(isinstance(node.ctx, ast.Store))
        case ast.Assign():
            return _use_in([node.value, *node.targets], name)
        case ast.AugAssign(target=ast.Name(id=found)) if found == name:
            return _Use.READS
        case ast.AnnAssign():
            return _use_in([node.value, node.target if node.value else None], name)
        case ast.NamedExpr():
            return _use_in([node.value, node.target], name)
        case ast.For() | ast.AsyncFor():
            return _loop_use(node, name)
        case ast.While():
            return _perhaps([node.test], [[*node.body], [*node.orelse]], name)
        case ast.If() | ast.IfExp():
            branches = (node.body, node.orelse)
            parts = [part if isinstance(part, list) else [part] for part in branches]
            uses = [_use_in(part, name) for part in parts]
            test = _use(node.test, name)
            if test is not _Use.NONE:
                return test
            if _Use.READS in uses:
                return _Use.READS
            return _Use.BINDS if uses == [_Use.BINDS, _Use.BINDS] else _Use.NONE
        case ast.Try() | ast.TryStar():
            pieces: list[list[ast.AST]] = [[*node.body, *node.orelse], [*node.finalbody]]
            pieces.extend([handler] for handler in node.handlers)
            return _perhaps([], pieces, name)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            inside = _mentions(node, name)
            declared = any(
                isinstance(below, ast.Nonlocal) and name in below.names for below in ast.walk(node)
            )
            if inside or declared:
                return _Use.READS
            return _binds_if(True) if node.name == name else _Use.NONE
        case ast.Lambda():
            arguments = node.args
            use = _use_in([*arguments.defaults, *arguments.kw_defaults], name)
            own = {below.arg for below in ast.walk(arguments) if isinstance(below, ast.arg)}
            # names bound in its body are local to it
            is_other = use is not _Use.NONE or name in own
            return use if is_other or not _mentions(node.body, name) else _Use.READS
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            own = {
                below.id
                for clause in node.generators
                for below in ast.walk(clause.target)
                if isinstance(below, ast.Name)
            }
            first_iterable = node.generators[0].iter
            rest = [] if name in own else list(ast.iter_child_nodes(node))
            return _perhaps([first_iterable], [rest], name)
        case ast.Import() | ast.ImportFrom():
            bound = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            return _binds_if(True) if name in bound else _Use.NONE
        case ast.BoolOp(values=[first, *others]):
            return _perhaps([first], [others], name)
        case ast.Compare(left=left, comparators=[second, *others]):
            return _perhaps([left, second], [others], name)
        case ast.Assert():
            return _perhaps([node.test], [[node.msg]], name)
        case ast.ExceptHandler(name=found) if found == name:
            before = _use_in([node.type], name)
            return _Use.BINDS if before is _Use.NONE else before
        case ast.withitem():
            return _use_in([node.context_expr, node.optional_vars], name)
        case ast.Match():
            cases = [[one.pattern, one.guard, *one.body] for one in node.cases]
            return _perhaps([node.subject], cases, name)
        case ast.MatchAs(name=found) | ast.MatchStar(name=found) if found == name:
            return _Use.BINDS
        case ast.Nonlocal(names=found):
            return _Use.READS if name in found else _Use.NONE
    return _use_in(ast.iter_child_nodes(node), name)


def _binds_if(binds: bool) -> _Use:
    return _Use.BINDS if binds else _Use.READS


def _loop_use(node: ast.For | ast.AsyncFor, name: str) -> _Use:
    first = _use(node.iter, name)
    if first is not _Use.NONE:
        return first
    target = _use(node.target, name)
    # the body runs with the target bound; code after the loop may find it unbound, if the iterable
    # was empty
    body = _Use.NONE if target is _Use.BINDS else _use_in(node.body, name)
    rest = _use_in(node.orelse, name)
    return _Use.READS if _Use.READS in (body, rest) else _Use.NONE


def _perhaps(
    first: Sequence[ast.AST], parts: Sequence[Sequence[ast.AST | None]], name: str
) -> _Use:
    """Return the use of a name by code whose `first` part always runs and whose `parts` may not.

    The parts may read the name, and never bind it for certain.
    """
    certain = _use_in(first, name)
    if certain is not _Use.NONE:
        return certain
    reads = any(_use_in(part, name) is _Use.READS for part in parts)
    return _Use.READS if reads else _Use.NONE
