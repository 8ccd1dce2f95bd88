"""Which blocks evidently touch model values nowhere but where their text says so.

A call can do anything: a property of somebody's class, a callback, a helper may read `.output`
in a frame that was not lowered. Such a frame can only wait if it has a stack of its own, which
costs more than a microsecond each time the machine is advanced. A block that is *plain* does
without: every operation in it is one that is known, by its name or by the type of the values it
starts from, to run no code that could touch a model value.

The text alone cannot tell what a name stands for. So a plain block comes with what the runtime has
to look at before it believes this: the values of names (`Plain.roots`), what is found by a path
from them (`Plain.paths`), and names that no class of a user's may define (`Plain.named`). What the
model hands to a block is looked at as it comes (see `nnsight_dsl.runtime.values.known_types`).
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
"""Attributes that are known on tensors, containers and texts."""

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
"""A name, the attributes and indices from it on, and whether what is there is called."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A block whose text names nothing unknown, provided that its names are what they seem.

    Attributes:
        roots: names whose values must be of known types.
        paths: what is looked up from them, which must run no code of a user's.
        named: attributes of values that the text cannot tell from places of the model, so that no
            module may have such an attribute from a user's class.
        makes_cache: whether a cache may be made, which is shown modules that the text does not
            name.
    """

    roots: frozenset[str]
    paths: frozenset[Path]
    named: frozenset[str]
    makes_cache: bool


def plain_of(
    body: Sequence[ast.stmt], fetched: frozenset[str], params: frozenset[str] = frozenset()
) -> Plain | None:
    """Return what has to hold for a block to be plain, or None if it cannot be.

    Args:
        body: the statements of the block.
        fetched: names that come from other blocks, whose values are looked at as they come.
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
                    # lowering turns these into requests, so that only what they are given counts
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
    """What has been found in the expressions of a block.

    Attributes:
        paths: attributes and calls that start from a name.
        named: attributes of values that may be places.
        makes_cache: whether `.cache` is named.
    """

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self.named: set[str] = set()
        self.makes_cache = False

    def is_known(self, node: ast.expr) -> bool:
        """True if an expression is known, provided that what has been noted is as it seems."""
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
                # what is printed may be a place, and shows the module behind it
                self.named |= _SHOWN
            return function.id in _BUILTINS and hasattr(builtins, function.id)
        if not isinstance(function, ast.Attribute) or function.attr in _REQUESTING:
            return False
        if function.attr.startswith("set_"):
            # torch.set_grad_enabled(False) and the like set what has to be kept from the model
            return False
        return self._is_known_attribute(function, called=True)

    def _is_known_attribute(self, node: ast.Attribute, *, called: bool) -> bool:
        if called and node.attr == "save":
            # lowering makes a call of ours of it, which looks up nothing but a type's own `save`
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


def _is_of_value(node: ast.expr) -> bool:
    """True if an expression is taken from what a port holds, which is looked at as it comes."""
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
    """Iterate over a statement and what is in it, but for the bodies of invokes.

    These are programs of their own.
    """
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.items if _is_invoke_block(node) else ast.iter_child_nodes(node))


def _is_lowered(body: Sequence[ast.stmt]) -> bool:
    """Return whether every access of a block becomes a request, so that none has to be carried."""
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
    """Return whether an expression calls nothing but operations known by their names.

    No value is looked at: `torch` is taken for what it is called.
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
