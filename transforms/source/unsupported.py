"""Refusal of constructs that cannot be lowered, before anything runs.

A block is lowered to a separate generator function. Control flow that leaves the block other than
at its end (`return`, `yield`, `break` out of an outer loop, `await`) has no meaning in there, and
neither have declarations that reach outside (`global`, `nonlocal`). Each refusal names the
construct, its line and another way to write it:

    'await' in a block cannot be lowered; await before or after the block

A `return` without a value is accepted in a block that is the last statement of its function,
since both end at the same point. A construct that is neither refused nor handled by a pass would
silently change its meaning, so new syntax of Python has to be considered here first.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from ..errors import UnsupportedSyntaxError
from ..prefilter import OPENING_CALLS

INNER_BLOCKS = frozenset({"invoke", "backward"}) | OPENING_CALLS
"""Methods that open a block inside a block."""

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)


class _Refusals(ast.NodeVisitor):
    def __init__(
        self, filename: str, lines: Sequence[str], *, may_return: bool, is_last: bool
    ) -> None:
        self._may_return = may_return
        self._is_last = is_last
        self._filename = filename
        self._lines = lines
        # loops that a `break` at the visited node could leave: those inside the current block
        self._loops = 0
        # `with tracer.iter[...]` statements that a `break` would have to leave
        self._step_blocks = 0

    def _refuse(self, node: ast.stmt | ast.expr, what: str, remedy: str) -> None:
        index = node.lineno - 1
        text = self._lines[index] if 0 <= index < len(self._lines) else None
        # ast counts columns in bytes, a SyntaxError in characters
        column = len((text or "").encode()[: node.col_offset].decode(errors="replace"))
        raise UnsupportedSyntaxError.at(what, remedy, self._filename, node.lineno, column, text)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, _SCOPES):
            self._visit_scope(node)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            self._visit_loop(node)
        else:
            super().visit(node)

    def _visit_scope(self, node: ast.AST) -> None:
        # decorators, defaults and bases are evaluated in the block; the body is a separate scope
        outside: list[ast.expr | None] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            outside += [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
        elif isinstance(node, ast.Lambda):
            outside += [*node.args.defaults, *node.args.kw_defaults]
        elif isinstance(node, ast.ClassDef):
            keywords = [keyword.value for keyword in node.keywords]
            outside += [*node.decorator_list, *node.bases, *keywords]
        elif isinstance(node, ast.GeneratorExp):
            outside.append(node.generators[0].iter)
        for expression in outside:
            if expression is not None:
                self.visit(expression)

    def _visit_loop(self, node: ast.For | ast.AsyncFor | ast.While) -> None:
        if isinstance(node, ast.AsyncFor):
            self._refuse(node, "'async for'", "collect the items before the block")
        self._loops += 1
        steps, self._step_blocks = self._step_blocks, 0
        for child in node.body:
            self.visit(child)
        self._loops -= 1
        self._step_blocks = steps
        header = [node.test] if isinstance(node, ast.While) else [node.iter]
        for part in (*header, *node.orelse):
            self.visit(part)

    def visit_Return(self, node: ast.Return) -> None:
        if self._may_return:
            self.generic_visit(node)
            return
        if not returns_nothing(node):
            remedy = "save the value in the block and return it after the block"
            self._refuse(node, "'return'", remedy)
        if not self._is_last:
            self._refuse(
                node,
                "'return'",
                "put the rest of the block under an 'if'; a 'return' without a value may stand in "
                "a trace that is the last statement of its function",
            )

    def visit_Break(self, node: ast.Break) -> None:
        self._leave_loop(node, "'break'")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._leave_loop(node, "'continue'")

    def _leave_loop(self, node: ast.stmt, what: str) -> None:
        if self._step_blocks:
            self._refuse(
                node,
                f"{what} out of a 'with ... iter[...]'",
                "write the loop as 'for step in tracer.iter[...]:'",
            )
        if not self._loops:
            self._refuse(
                node,
                f"{what} of an outer loop",
                "set a name in the block, save it, and leave the loop after the block",
            )

    def visit_Yield(self, node: ast.Yield) -> None:
        self._refuse(node, "'yield'", "save the value in the block and yield it after the block")

    def visit_YieldFrom(self, node: ast.YieldFrom) -> None:
        self._refuse(node, "'yield from'", "save the values and yield them after the block")

    def visit_Await(self, node: ast.Await) -> None:
        self._refuse(node, "'await'", "await before or after the block")

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self._refuse(node, "'async with'", "enter it around the block")

    def visit_comprehension(self, node: ast.comprehension) -> None:
        if node.is_async:
            self._refuse(
                node.target, "an asynchronous comprehension", "collect the items before the block"
            )
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self._refuse(
            node,
            f"'global {', '.join(node.names)}'",
            "save the value in the block and assign the global after the block",
        )

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self._refuse(
            node,
            f"'nonlocal {', '.join(node.names)}'",
            "save the value in the block and assign the name after the block",
        )

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name) and not node.simple:
            self._refuse(
                node,
                f"an annotation of '({node.target.id})'",
                "write the name without parentheses",
            )
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if any(alias.name == "*" for alias in node.names):
            self._refuse(node, "'import *'", "import the names that the block uses")

    def visit_With(self, node: ast.With) -> None:
        steps = is_step_block(node)
        if any(_is_inner_block(item.context_expr) for item in node.items):
            self._visit_inner_block(node)
            return
        for item in node.items:
            self.visit(item.context_expr)
        self._step_blocks += steps
        loops, self._loops = self._loops, 0 if steps else self._loops
        for child in node.body:
            self.visit(child)
        self._loops = loops
        self._step_blocks -= steps

    def _visit_inner_block(self, node: ast.With) -> None:
        """Visit an inner block: its body is lowered separately, so it cannot leave outer loops."""
        for item in node.items:
            self.visit(item.context_expr)
        outer = self._loops, self._step_blocks, self._may_return, self._is_last
        self._loops = self._step_blocks = 0
        self._may_return = self._is_last = False
        for child in node.body:
            self.visit(child)
        self._loops, self._step_blocks, self._may_return, self._is_last = outer


def is_step_block(node: ast.With) -> bool:
    """Return whether a `with` statement is a loop over steps: `with tracer.iter[...]`, `.all()`."""
    return any(is_steps(item.context_expr) for item in node.items)


def _is_inner_block(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in INNER_BLOCKS
    )


def is_steps(node: ast.expr) -> bool:
    """Return whether an expression is `<anything>.iter[...]` or `<anything>.all()`."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "iter"
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "all"
        and not (node.args or node.keywords)
    )


def returns_nothing(node: ast.Return) -> bool:
    """Return whether a `return` has no value, or the literal None."""
    return node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)


def is_last_of(function: ast.AST, statement: ast.With) -> bool:
    """Return whether no statement of a function can run after one of its statements.

    Only the exits of enclosing `with` statements and enclosing `finally` clauses may run.
    """
    todo: list[ast.AST] = [function]
    while todo:
        node = todo.pop()
        if node is statement:
            return True
        parts: tuple[list[ast.AST], ...]
        match node:
            case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
                parts = (body[-1:],) if node is function else ()  # type: ignore[assignment]
            case ast.With(body=body) | ast.AsyncWith(body=body) | ast.match_case(body=body):
                parts = (body[-1:],)  # type: ignore[assignment]
            case ast.ExceptHandler(body=body):
                parts = (body[-1:],)  # type: ignore[assignment]
            case ast.If(body=body, orelse=orelse):
                parts = (body[-1:], orelse[-1:])  # type: ignore[assignment]
            case ast.Match(cases=cases):
                parts = (cases,)  # type: ignore[assignment]
            case ast.Try(body=body, orelse=orelse, handlers=handlers):
                # a `return` in the body would leave out the `else` clause
                own = orelse[-1:] if orelse else body[-1:]
                parts = (own, handlers)  # type: ignore[assignment]
            case _:
                parts = ()
        todo.extend(child for part in parts for child in part)
    return False


def refuse_unsupported(
    body: Sequence[ast.stmt],
    filename: str,
    lines: Sequence[str],
    *,
    may_return: bool = False,
    is_last: bool = False,
) -> None:
    """Check the statements of a block or function that is to be lowered.

    Args:
        body: the statements.
        filename: the file of the statements.
        lines: the lines of that file.
        may_return: True for the body of a function, which may return values.
        is_last: True for a block that is the last statement of its function, and so may contain a
            `return` without a value.

    Raises:
        UnsupportedSyntaxError: the first construct that cannot be lowered.
    """
    refusals = _Refusals(filename, lines, may_return=may_return, is_last=is_last)
    for statement in body:
        refusals.visit(statement)
