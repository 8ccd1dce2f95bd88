"""Ahead-of-time lowering: rewrite all blocks of a module before it runs.

The import hook compiles modules with `rewrite_module`. Compared to a block in a plain script
(`live_frames`), the entry of a rewritten block needs no lookup of its text, no trace function and
no write access to a live frame. This:

    with model.trace("Hello") as tracer:
        hidden = model.transformer.h[0].output.save()

becomes, in the module's syntax tree:

    _nns_block = model.trace("Hello")
    if _nns.is_instance(_nns_block, _nns.blocks):
        tracer = _nns.bound_by(_nns_block)
        try:
            _nns_names = {"model": model}
        except _nns.Unbound:
            _nns_names = None
        _nns_left = _nns.run(_nns_block, _nns_programs[0], _nns_names)
        if "hidden" in _nns_left:
            hidden = _nns_left["hidden"]
        _nns_failure = _nns_left.get(None)
        del _nns_left, _nns_block, _nns_names
        try:
            if _nns_failure is not None:
                raise _nns_failure
        finally:
            del _nns_failure
    else:
        with _nns_block as tracer:
            hidden = model.transformer.h[0].output.save()

The `else` branch is for the `trace` method of another library, whose meaning is unchanged. It also
keeps the block's names in the symbol table of the enclosing function, so that closures over them
work as before.

`_nns_names` holds the values of the names that the program reads; if one of them is unbound, it is
None, and the runtime looks at the frame instead. `_nns_left` maps the names bound by the block to
their values, and None to an exception to be raised after the names are bound. The exception's
traceback refers to this frame, so the frame must drop its reference to the exception.

A block that cannot be lowered is left unchanged, and refused when it is entered, as in a plain
script.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import TypeVar

from ..errors import UnsupportedSyntaxError
from ..frame_names import local_names
from ..prefilter import OPENING_CALLS
from ..program import Program
from .pipeline import lower_block
from .scopes import nonlocals_in
from .surroundings import Surroundings, future_flags
from .unsupported import is_last_of

_Node = TypeVar("_Node", bound=ast.AST)

SUPPORT = "_nns"
PROGRAMS = "_nns_programs"
_BLOCK = "_nns_block"
_LEFT = "_nns_left"
_FAILURE = "_nns_failure"
_NAMES = "_nns_names"


@dataclass(frozen=True, slots=True)
class _Scope:
    """The function, class or module around some statements."""

    name: str
    locals: frozenset[str]
    is_function: bool
    class_name: str | None
    first_argument: str | None = None


class _Rewriter(ast.NodeTransformer):
    def __init__(self, filename: str, lines: list[str], code: CodeType) -> None:
        self._filename = filename
        self._lines = lines
        self._flags = future_flags(code)
        self._functions = dict(_function_names(code))
        # the scopes and functions around the visited node, innermost last
        self._scopes = [_Scope("<module>", frozenset(), False, None)]
        self._enclosing: list[ast.AST] = []
        self.programs: list[Program] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._in_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._in_function(node)

    def _in_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        found = self._functions.get((node.name, first), frozenset())
        arguments = [*node.args.posonlyargs, *node.args.args]
        scope = _Scope(
            node.name,
            found,
            True,
            self._scopes[-1].class_name,
            arguments[0].arg if arguments else None,
        )
        return self._inside(node, scope)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        return self._inside(node, _Scope(node.name, frozenset(used), False, node.name))

    def _rebound(self, node: ast.With) -> frozenset[str]:
        outermost = next(iter(self._enclosing), None)
        return frozenset() if outermost is None else nonlocals_in(outermost, node)

    def _inside(self, node: ast.AST, scope: _Scope) -> ast.AST:
        self._scopes.append(scope)
        if scope.is_function:
            self._enclosing.append(node)
        try:
            return self.generic_visit(node)
        finally:
            self._scopes.pop()
            if scope.is_function:
                self._enclosing.pop()

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        item = next((i for i, one in enumerate(node.items) if _opens_block(one)), None)
        if item is None:
            return self.generic_visit(node)
        scope = self._scopes[-1]
        around = Surroundings(
            self._filename,
            self._lines,
            scope.name,
            scope.locals,
            scope.is_function,
            scope.class_name,
            scope.first_argument,
            self._rebound(node) & scope.locals if scope.is_function else frozenset(),
            self._flags,
            is_last=scope.is_function and is_last_of(self._enclosing[-1], node),
        )
        try:
            program = lower_block(node, item, around)
        except UnsupportedSyntaxError:
            return node
        number = len(self.programs)
        self.programs.append(program)
        read = _names_read(program) if scope.is_function else None
        if read is not None:
            read &= scope.locals
        statements = _replacement(node, item, number, program, read)
        if item:
            return _placed(ast.With(node.items[:item], statements), node)
        return statements


def _opens_block(item: ast.withitem) -> bool:
    call = item.context_expr
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in OPENING_CALLS
    )


def _names_read(program: Program) -> frozenset[str] | None:
    """Return the names whose values a run needs, None if it needs the whole frame anyway."""
    known = program.plain
    if known is None or program.children or program.looks_outside:
        return None
    starts = {state.root for state in program.states if state.root is not None}
    return known.roots.union(program.params, starts)


def _replacement(
    node: ast.With, item: int, number: int, program: Program, read: frozenset[str] | None
) -> list[ast.stmt]:
    opened = node.items[item]
    lines = [f"if {SUPPORT}.is_instance({_BLOCK}, {SUPPORT}.blocks):"]
    values = "None" if read is None else _NAMES if read else "{}"
    if read:
        pairs = ", ".join(f"{name!r}: {name}" for name in sorted(read))
        lines += [
            f"    try: {_NAMES} = {{{pairs}}}",
            f"    except {SUPPORT}.Unbound: {_NAMES} = None",
        ]
    lines.append(f"    {_LEFT} = {SUPPORT}.run({_BLOCK}, {PROGRAMS}[{number}], {values})")
    for name in sorted(program.all_bound()):
        lines.append(f"    if {name!r} in {_LEFT}: {name} = {_LEFT}[{name!r}]")
    lines += [
        f"    {_FAILURE} = {_LEFT}.get(None)",
        f"    del {_LEFT}, {_BLOCK}" + (f", {_NAMES}" if read else ""),
        # the traceback refers to this frame, so the frame must not keep the exception
        "    try:",
        f"        if {_FAILURE} is not None: raise {_FAILURE}",
        f"    finally: del {_FAILURE}",
    ]
    branch = ast.parse("\n".join(lines)).body[0]
    if not isinstance(branch, ast.If):
        raise TypeError("the replacement of a block is an if statement")
    for generated in ast.walk(branch):
        _place(generated, opened.context_expr)
    if opened.optional_vars is not None:
        value = ast.parse(f"{SUPPORT}.bound_by({_BLOCK})", mode="eval").body
        for generated in ast.walk(value):
            _place(generated, opened.context_expr)
        bind = ast.Assign([opened.optional_vars], value)
        branch.body.insert(0, _placed(bind, opened.context_expr))
    same = ast.withitem(
        _placed(ast.Name(_BLOCK, ast.Load()), opened.context_expr), opened.optional_vars
    )
    other = ast.With([same, *node.items[item + 1 :]], node.body)
    branch.orelse = [_placed(other, node)]
    store = ast.Assign([ast.Name(_BLOCK, ast.Store())], opened.context_expr)
    return [_placed(store, opened.context_expr), branch]


def _place(node: ast.AST, like: ast.AST) -> None:
    for attribute in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
        if attribute in node._attributes:
            setattr(node, attribute, getattr(like, attribute))


def _placed(node: _Node, like: ast.AST) -> _Node:
    _place(node, like)
    for child in ast.iter_child_nodes(node):
        if not hasattr(child, "lineno") and "lineno" in child._attributes:
            _place(child, like)
    return node


def _function_names(code: CodeType) -> Mapping[tuple[str, int], frozenset[str]]:
    """Collect the local names of all functions of a module, by function name and first line.

    Functions that share name and first line are merged, which may only add names.
    """
    found: dict[tuple[str, int], frozenset[str]] = {}
    todo = [code]
    while todo:
        current = todo.pop()
        todo.extend(const for const in current.co_consts if isinstance(const, CodeType))
        if current.co_flags & inspect.CO_OPTIMIZED:
            key = (current.co_name, current.co_firstlineno)
            found[key] = found.get(key, frozenset()) | local_names(current)
    return found


def rewrite_module(source: str, filename: str) -> tuple[ast.Module, tuple[Program, ...]]:
    """Lower all blocks of a module.

    Args:
        source: the text of the module.
        filename: its file name, for tracebacks.

    Returns:
        The module's tree with each block replaced, and the programs. The tree expects the module
        `nnsight_dsl.blocks.support` under the name `_nns`, and the programs under `_nns_programs`.

    Raises:
        SyntaxError: the source does not parse.
    """
    tree = ast.parse(source, filename)
    code = compile(tree, filename, "exec", dont_inherit=True)
    rewriter = _Rewriter(filename, source.splitlines(), code)
    rewritten = rewriter.visit(tree)
    return rewritten, tuple(rewriter.programs)
