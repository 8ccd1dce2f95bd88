"""The statements of a block, compiled by Python, with what plain Python has no other place for.

That is `x.save()` on any object, the replacement of an element (`m.output[0] = x`), a loop that is
written as `with tracer.iter[...]`, and the names that an invoke shares with a later one. All of
these become calls.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any, TypeGuard

from tests.differential import gradients
from tests.differential.mirrors import Mirror, Tracer
from tests.differential.oracle import FILENAME, Run

_SCALARS = (int, float, bool, str, bytes, type(None))
_PORTS = ("output", "input", "inputs")


class _Rewritten(ast.NodeTransformer):
    """Writes calls for what plain Python cannot do: saving, elements of ports, shared names."""

    def __init__(self, told: Sequence[str], fetched: Sequence[str], *, in_block: bool) -> None:
        self._in_block = in_block
        self._told = told
        self._fetched = fetched

    def _called(self, name: str, *args: ast.expr) -> ast.Call:
        return ast.Call(ast.Name(name, ast.Load()), list(args), [])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "save" and not node.args:
            return self._called("save", node.func.value)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self._fetched and isinstance(node.ctx, ast.Load):
            return self._called("_fetch", ast.Constant(node.id))
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        saves = _is_save(node.value)
        self.generic_visit(node)
        if saves:
            for target in node.targets:
                if isinstance(target, ast.Name):
                    node.value = self._called("_named", ast.Constant(target.id), node.value)
        after: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in self._told:
                told = self._called(
                    "_tell", ast.Constant(target.id), ast.Name(target.id, ast.Load())
                )
                after.append(ast.Expr(told))
        targets = [found for target in node.targets if (found := _element_of_port(target))]
        if self._in_block and targets and len(node.targets) == 1:
            port, path = targets[0]
            call = self._called("_set_element", node.value, port.value, ast.Constant(port.attr))
            call.args.extend(path)
            return [ast.Expr(call), *after]
        return [node, *after] if after else node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        found = _element_of_port(node.target)
        if found is None or not self._in_block:
            return node
        port, path = found
        read = ast.Attribute(port.value, port.attr, ast.Load())
        element: ast.expr = read
        for one in path:
            element = ast.Subscript(element, one, ast.Load())
        name = ast.Constant(f"i{_OPERATORS[type(node.op)]}")
        value = self._called("_augmented", element, name, node.value)
        call = self._called("_set_element", value, port.value, ast.Constant(port.attr), *path)
        return ast.Expr(call)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        # the statements of a function are plain Python, in a block too
        in_block, self._in_block = self._in_block, False
        try:
            return self.generic_visit(node)
        finally:
            self._in_block = in_block

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        context = node.items[0].context_expr
        if (
            isinstance(context, ast.Subscript)
            and isinstance(context.value, ast.Attribute)
            and context.value.attr == "iter"
        ):
            target = node.items[0].optional_vars or ast.Name("_", ast.Store())
            return ast.For(target, context, node.body, [])
        if _is_backward(context):
            body = [_Gradients().visit(statement) for statement in node.body]
            names = sorted(
                {
                    one.id
                    for statement in body
                    for one in ast.walk(statement)
                    if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
                }
            )
            own: list[ast.stmt] = [ast.Global(names)] if names else []
            nothing = ast.arguments([], [], None, [], [], None, [])
            return [
                ast.FunctionDef("_body", nothing, [*own, *body], []),
                ast.Expr(
                    self._called("_backward", context.func.value, ast.Name("_body", ast.Load()))
                ),
            ]
        return node


class _Gradients(ast.NodeTransformer):
    """Writes calls for the gradients in a backward block."""

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        target = node.targets[0]
        if isinstance(target, ast.Attribute) and target.attr == "grad":
            name = ast.Name("_set_grad", ast.Load())
            return ast.Expr(ast.Call(name, [target.value, node.value], []))
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        if node.attr == "grad" and isinstance(node.ctx, ast.Load):
            return ast.Call(ast.Name("_grad", ast.Load()), [node.value], [])
        return node


def _is_backward(node: ast.expr) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "backward"
    )


_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul"}


def _is_save(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr == "save"
    return isinstance(node.func, ast.Name) and node.func.id == "save"


def _element_of_port(node: ast.expr) -> tuple[ast.Attribute, list[ast.expr]] | None:
    path: list[ast.expr] = []
    while isinstance(node, ast.Subscript):
        path.insert(0, node.slice)
        node = node.value
    if path and isinstance(node, ast.Attribute) and node.attr in _PORTS:
        return node, path
    return None


def compiled(
    text: str, told: Sequence[str] = (), fetched: Sequence[str] = (), *, in_block: bool = True
) -> CodeType:
    """Compile the statements of a block.

    Args:
        text: the statements.
        told: names that later blocks wait for.
        fetched: names of earlier blocks that this one waits for.
        in_block: whether they are lowered, and not a function's that a block calls: only there is
            an element of a tuple replaced.
    """
    tree = _Rewritten(told, fetched, in_block=in_block).visit(ast.parse(text))
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)) and not hasattr(node, "lineno"):
            node.lineno = 0
    _fill_lines(tree, 1)
    code: CodeType = compile(tree, FILENAME, "exec", dont_inherit=True)
    return code


def _fill_lines(node: ast.AST, line: int) -> None:
    """Give new nodes the line of what is around them, or of the first statement in them."""
    own = getattr(node, "lineno", None)
    if own == 0:
        inside = [one.lineno for one in ast.walk(node) if getattr(one, "lineno", 0)]
        own = min(inside, default=line)
    if own is not None:
        node.lineno = node.end_lineno = line = own  # type: ignore[attr-defined]
        node.col_offset = node.end_col_offset = 0  # type: ignore[attr-defined]
    for child in ast.iter_child_nodes(node):
        _fill_lines(child, line)


class Saved:
    """What the blocks of a run have saved."""

    def __init__(self) -> None:
        self._by_id: dict[int, Any] = {}

    def save(self, value: Any) -> Any:
        self._by_id[id(value)] = value
        return value

    def identities(self) -> frozenset[int]:
        """Return the identities of the objects that have been saved so far."""
        return frozenset(self._by_id)

    def leaving(
        self, names: Mapping[str, Any], outer: Mapping[str, Any], identities: frozenset[int] | None
    ) -> dict[str, Any]:
        """Return the names that leave a block: those bound to a saved object at its end.

        Args:
            names: the names of the block.
            outer: the names around it.
            identities: of the objects that were saved when it ended, None where it has not.
        """
        if identities is None:
            identities = self.identities()
        found = {}
        named = names["_own"]
        for name, value in names.items():
            if name in outer and outer[name] is value:
                continue
            if isinstance(value, _SCALARS):
                is_saved = name in named and named[name] is value
            else:
                is_saved = id(value) in identities
            if is_saved:
                found[name] = value
        return found


def names_of_block(run: Run, saved: Saved, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a block finds: the names around it, and what was rewritten to calls."""

    own: dict[str, Any] = {}

    def assigned(name: str, value: Any) -> Any:
        own[name] = value
        return value

    def set_element(value: Any, mirror: Any, port: str, *path: Any) -> None:
        container = getattr(mirror, port)
        new = _with_element(container, path, value)
        if isinstance(mirror, Mirror) and new is not container:
            setattr(mirror, port, new)

    def fetch(name: str) -> Any:
        # a block that waits for a name has it from then on
        found[name] = run.ask(("name", name))
        return found[name]

    found = {
        **names,
        "save": saved.save,
        "_named": assigned,
        "_own": own,
        "_set_element": set_element,
        "_augmented": _augmented,
        "_tell": lambda name, value: run.ask(("tell", name, value)),
        "_fetch": fetch,
        "_backward": gradients.backward,
        "_grad": gradients.read,
        "_set_grad": gradients.write,
        "tracer": Tracer(run, saved.save),
    }
    return found


def _augmented(old: Any, name: str, value: Any) -> Any:
    return getattr(operator, name)(old, value)


def _with_element(container: Any, path: Sequence[Any], value: Any) -> Any:
    key, *rest = path
    if rest:
        inner = container[key]
        new = _with_element(inner, rest, value)
        if new is inner:
            return container
        value = new
    if isinstance(container, tuple):
        items = list(container)
        items[key] = value
        return tuple(items)
    container[key] = value
    return container


def line_of(error: BaseException, text: str) -> str | None:
    """Return the last line of a block that an error passed through."""
    lines = text.splitlines()
    if hasattr(error, "line_of_write"):
        return lines[int(error.line_of_write) - 1].strip()
    found, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == FILENAME:
            found = lines[traceback.tb_lineno - 1].strip()
        traceback = traceback.tb_next
    return found
