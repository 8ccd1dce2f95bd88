"""Plain blocks: blocks that access model values only where their text says so.

A call can run arbitrary code: a property of a user's class, a callback or a helper function may
read `.output` in a frame that was not lowered. Such a frame can wait only on a separate stack (a
greenlet), and switching stacks costs more than a microsecond each time the machine is advanced. A
*plain* block avoids that cost: every operation in it is known, by its name or by the type of its
operands, not to run code that could access a model value.

    hidden = model.transformer.h[3].output      # plain: a port, and methods of tensors
    scores = (hidden @ direction).softmax(-1)

    helper(model)                               # not plain: the function may read anything

The text alone does not determine the value of a name. So a plain block comes with conditions,
which the runtime checks as guards before it relies on them: the types of the values of names
(`Plain.roots`), the objects found along paths from them (`Plain.paths`), and attributes that no
user class may define (`Plain.named`). Values that come from the model are checked when they
arrive (see `nnsight_dsl.runtime.values.known_types`).

If this analysis is too strict, a block is slower; if it were too lax, a hidden access would have
no stack to wait on. So an unknown construct is never plain.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard, cast

from ..requests import PORTS
from .accesses import PathItem, static_path
from .unsupported import is_step_block, is_steps

_BUILTINS = frozenset(
    (
        "abs bool dict divmod enumerate float frozenset int isinstance len list max min pow "
        "print range reversed round set slice sorted str sum tuple type zip"
    ).split()
)
_TENSOR_ATTRIBUTES = frozenset(
    ("shape device dtype ndim T mT H mH real imag data is_cuda requires_grad value").split()
)
_METHODS = frozenset(
    (
        "abs add add_ amax amin append argmax argmin argsort bfloat16 bmm chunk clamp clone "
        "copy copy_ contiguous cos cosine_similarity cpu cuda cumsum detach diagonal div div_ "
        "double dim einsum eq exp expand extend fill_ flatten float gather ge get gt half "
        "index_select insert int item items join keys le log log_softmax long lt masked_fill "
        "masked_fill_ matmul max mean median min mm movedim mul mul_ narrow ne neg new_tensor "
        "new_zeros nonzero norm numel numpy permute pop pow prod relu repeat requires_grad_ "
        "reshape roll round rsqrt save scatter sigmoid sign sin size softmax sort split sqrt "
        "square squeeze std sub sub_ sum tanh t to tolist topk transpose tril triu type "
        "type_as unbind unsqueeze update values var view view_as zero_ decode"
    ).split()
)
_REQUESTING = frozenset(("skip stop next iter all barrier invoke trace generate source").split())
ATTRIBUTES = _TENSOR_ATTRIBUTES | _METHODS
"""Attributes of tensors, containers and strings that are known to run no user code."""

_PRINTING = frozenset({"print", "str"})
_SHOWN = frozenset({"extra_repr", "__repr__", "__str__"})
_STATEMENTS = (
    ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.For, ast.While, ast.If, ast.Pass,
    ast.Break, ast.Continue, ast.Return, ast.Assert, ast.Delete, ast.Raise, ast.With,
)  # fmt: skip
_EXPRESSIONS = (
    ast.Constant, ast.Name, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Slice, ast.Starred, ast.Attribute,
    ast.Call, ast.ListComp, ast.SetComp, ast.DictComp, ast.NamedExpr,
)  # fmt: skip


Path: TypeAlias = tuple[str, tuple[PathItem, ...], bool]
"""A name, the attributes and indices that follow it, and True if the result is called."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The conditions under which a block is plain.

    Attributes:
        roots: names whose values must be of known types.
        paths: lookups that start from them and must run no user code.
        named: attributes of values that, by the text, may be places of the model; no module may
            have such an attribute from a user's class.
        makes_cache: True if the block may make a cache, which records modules that the text does
            not name.
    """

    roots: frozenset[str]
    paths: frozenset[Path]
    named: frozenset[str]
    makes_cache: bool


def plain_of(
    body: Sequence[ast.stmt], fetched: frozenset[str], params: frozenset[str] = frozenset()
) -> Plain | None:
    """Return the conditions under which a block is plain, None if it cannot be.

    Args:
        body: the statements of the block.
        fetched: names shared by other blocks, whose values are checked when they arrive.
        params: names that the block may read before it binds them.
    """
    found = _Found()
    loaded: set[str] = set()
    bound = set(fetched)
    opened: set[ast.expr] = set()
    for statement in body:
        for node in _own_nodes(statement):
            if isinstance(node, ast.stmt):
                if is_backward_block(node) or _is_invoke_block(node):
                    call = cast("ast.Call", node.items[0].context_expr)
                    # lowering turns these calls into requests, so only their arguments matter
                    if any(keyword.arg is None for keyword in call.keywords):
                        return None
                    opened |= {call, call.func}
                elif not _is_known_statement(node):
                    return None
            elif node in opened:
                continue
            elif isinstance(node, ast.expr):
                if not isinstance(node, _EXPRESSIONS) or not found.is_known(node):
                    return None
                if isinstance(node, ast.Name):
                    (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.comprehension) and node.is_async:
                return None
    if bound & _BUILTINS or not _is_lowered(body):
        return None
    outside = (loaded - bound) | (loaded & params)
    named = set(found.named)
    for path in found.paths:
        items = _attributes(path[1])
        if path[0] in bound and not items <= ATTRIBUTES:
            return None
        if path[0] not in outside or path[0] in bound:
            named |= items
    paths = frozenset(path for path in found.paths if path[0] in outside)
    return Plain(frozenset(outside), paths, frozenset(named), found.makes_cache)


def _attributes(items: Sequence[PathItem]) -> set[str]:
    return {item for item in items if isinstance(item, str)}


class _Found:
    """The conditions collected from the expressions of a block.

    Attributes:
        paths: attributes and calls that start from a name.
        named: attributes of values that may be places of the model.
        makes_cache: True if `.cache` is mentioned.
    """

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self.named: set[str] = set()
        self.makes_cache = False

    def is_known(self, node: ast.expr) -> bool:
        """True if an expression is known under the collected conditions."""
        if isinstance(node, ast.Attribute):
            self.makes_cache |= node.attr == "cache"
            if node.attr in PORTS:
                return True
            return isinstance(node.ctx, ast.Load) and self._is_known_attribute(node, called=False)
        if not isinstance(node, ast.Call):
            return True
        if any(keyword.arg in ("key", "hook", None) for keyword in node.keywords):
            return False
        function = node.func
        if isinstance(function, ast.Name):
            if function.id in _PRINTING:
                # a printed value may be a place of the model, whose text is made by its module
                self.named |= _SHOWN
            return function.id in _BUILTINS and hasattr(builtins, function.id)
        if not isinstance(function, ast.Attribute) or function.attr in _REQUESTING:
            return False
        if function.attr.startswith("set_"):
            # torch.set_grad_enabled(False) etc. set state that must not leak into the model
            return False
        if function.attr == "get" and not _is_known_key(node.args):
            # `model.get("lm_head.output")` reads a value
            return False
        return self._is_known_attribute(function, called=True)

    def _is_known_attribute(self, node: ast.Attribute, *, called: bool) -> bool:
        if called and node.attr == "save":
            # lowered to the injected `save`, which looks up only the `save` of the value's type
            return True
        found = static_path(node)
        if found is not None:
            self.paths.add((*found, called))
            return True
        if node.attr not in (_METHODS if called else ATTRIBUTES):
            return False
        if not _is_of_value(node.value):
            self.named.add(node.attr)
        return True


def _is_known_key(args: Sequence[ast.expr]) -> bool:
    """True if the first argument of `get` cannot be a path to a port."""
    key = args[0] if args else None
    if not isinstance(key, ast.Constant):
        return False
    return not isinstance(key.value, str) or key.value.rpartition(".")[2] not in PORTS


def _is_of_value(node: ast.expr) -> bool:
    """True if an expression is part of a port's value, whose type is checked when it arrives."""
    while True:
        if isinstance(node, ast.Attribute):
            if node.attr in PORTS:
                return True
            node = node.value
        elif isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return isinstance(node, ast.Constant)


def is_backward_block(node: ast.stmt) -> TypeGuard[ast.With]:
    """Return whether a statement is `with <anything>.backward(...):` and no more."""
    return _opens(node, "backward") and node.items[0].optional_vars is None


def _is_invoke_block(node: ast.AST) -> TypeGuard[ast.With]:
    """Return whether a node is `with <anything>.invoke(...):` and no more."""
    return _opens(node, "invoke")


def _opens(node: ast.AST, method: str) -> TypeGuard[ast.With]:
    return (
        isinstance(node, ast.With)
        and len(node.items) == 1
        and isinstance(node.items[0].context_expr, ast.Call)
        and isinstance(node.items[0].context_expr.func, ast.Attribute)
        and node.items[0].context_expr.func.attr == method
    )


def _own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """Iterate over a statement and its nodes, except the bodies of invokes.

    Those are separate programs.
    """
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.items if _is_invoke_block(node) else ast.iter_child_nodes(node))


def _is_lowered(body: Sequence[ast.stmt]) -> bool:
    """Return whether every access of a block is lowered to a request, so that none is carried."""
    plain_targets: set[ast.expr] = set()
    loops: set[ast.expr] = set()
    for statement in body:
        for node in _own_nodes(statement):
            if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp)):
                if any(isinstance(below, ast.NamedExpr) for below in ast.walk(node)):
                    return False
            elif isinstance(node, ast.For):
                loops.add(node.iter)
            elif isinstance(node, ast.With):
                loops.update(item.context_expr for item in node.items)
            elif isinstance(node, ast.Assign):
                plain_targets.update(node.targets)
            elif isinstance(node, ast.AugAssign):
                port: ast.expr = node.target
                while isinstance(port, ast.Subscript):
                    port = port.value
                if isinstance(port, ast.Attribute) and static_path(port.value) is None:
                    return False
                plain_targets.add(node.target)
    for statement in body:
        for node in _own_nodes(statement):
            if isinstance(node, ast.Attribute) and node.attr in PORTS:
                if not isinstance(node.ctx, ast.Load) and node not in plain_targets:
                    return False
            elif isinstance(node, ast.expr) and is_steps(node) and node not in loops:
                return False
    return True


def _is_known_statement(node: ast.stmt) -> bool:
    if isinstance(node, ast.With):
        return is_step_block(node) and len(node.items) == 1
    return isinstance(node, _STATEMENTS)


_KNOWN_ROOTS = frozenset({"torch", "math", "np", "numpy", "F", "operator"})


def is_known_expression(node: ast.expr) -> bool:
    """Return whether an expression calls only operations that are known by their names.

    For the linter, which has no values: a name such as `torch` is taken for the module.
    """
    for below in ast.walk(node):
        if not isinstance(below, ast.expr):
            continue
        if not isinstance(below, _EXPRESSIONS):
            return False
        if isinstance(below, ast.Call) and not _is_known_call(below):
            return False
    return True


def _is_known_call(node: ast.Call) -> bool:
    found = _Found()
    return found.is_known(node) and all(
        root in _KNOWN_ROOTS or items[-1] in _METHODS for root, items, _ in found.paths
    )
