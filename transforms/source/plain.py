"""Which blocks evidently touch model values nowhere but where their text says so.

A call can do anything: a property of somebody's class, a callback, a helper may read `.output`
in a frame that was not lowered. Such a frame can only wait if it has a stack of its own, which
costs more than a microsecond each time the machine is advanced. A block that is *plain* does
without: every operation in it is one that is known, by its name or by the type of the values it
starts from, to run no code that could touch a model value.

The text alone cannot tell what a name stands for. So a plain block comes with the names whose
values the runtime has to look at before it believes this (`Plain.roots`).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

from ..requests import PORTS
from .accesses import static_path
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
_STATEMENTS = (
    ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.For, ast.While, ast.If, ast.Pass,
    ast.Break, ast.Continue, ast.Return, ast.Assert, ast.Delete, ast.Raise, ast.With,
)  # fmt: skip
_EXPRESSIONS = (
    ast.Constant, ast.Name, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Slice, ast.Starred, ast.Attribute,
    ast.Call, ast.ListComp, ast.SetComp, ast.DictComp, ast.NamedExpr,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plain:
    """A block whose text names nothing unknown, provided that its names are what they seem.

    Attributes:
        roots: names whose values must be of known types.
        paths: those of them whose attributes are not known by their names, so that the values
            must be places of a model or modules of known libraries.
        makes_cache: whether a cache may be made, which is shown modules that the text does not
            name.
    """

    roots: frozenset[str]
    paths: frozenset[str]
    makes_cache: bool


def plain_of(body: Sequence[ast.stmt], fetched: frozenset[str]) -> Plain | None:
    """Return what has to hold for a block to be plain, or None if it cannot be.

    Names in `fetched` come from other blocks, whose values are model values as those of this one.
    """
    loaded: set[str] = set()
    bound = set(fetched)
    paths: set[str] = set()
    opened: set[ast.expr] = set()
    makes_cache = False
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
                makes_cache |= isinstance(node, ast.Attribute) and node.attr == "cache"
                if not isinstance(node, _EXPRESSIONS) or not _is_known(node, paths):
                    return None
                if isinstance(node, ast.Name):
                    (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.comprehension) and node.is_async:
                return None
    if bound & (_BUILTINS | paths) or not _is_lowered(body):
        return None
    return Plain(frozenset(loaded - bound), frozenset(paths), makes_cache)


def is_backward_block(node: ast.stmt) -> TypeGuard[ast.With]:
    """Tell whether a statement is `with <anything>.backward(...):` and no more."""
    return _opens(node, "backward") and node.items[0].optional_vars is None


def _is_invoke_block(node: ast.AST) -> TypeGuard[ast.With]:
    """Tell whether a node is `with <anything>.invoke(...):` and no more."""
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
    """Tell whether every access of a block becomes a request, so that none has to be carried."""
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


def _is_known(node: ast.expr, paths: set[str]) -> bool:
    """Tell whether an expression is known; add to `paths` the names whose type has to say so."""
    if isinstance(node, ast.Attribute):
        known = PORTS | _TENSOR_ATTRIBUTES | _METHODS
        return node.attr in known or _starts_outside(node, paths)
    if not isinstance(node, ast.Call):
        return True
    if any(keyword.arg in ("key", "hook", None) for keyword in node.keywords):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        return function.id in _BUILTINS and hasattr(builtins, function.id)
    if not isinstance(function, ast.Attribute) or function.attr in _REQUESTING:
        return False
    if function.attr.startswith("set_"):
        # torch.set_grad_enabled(False) and the like set what has to be kept from the model
        return False
    return function.attr in _METHODS or _starts_outside(function, paths)


def _starts_outside(node: ast.Attribute, paths: set[str]) -> bool:
    found = static_path(node)
    if found is None:
        return False
    paths.add(found[0])
    return True


_KNOWN_ROOTS = frozenset({"torch", "math", "np", "numpy", "F", "operator"})


def is_known_expression(node: ast.expr) -> bool:
    """Tell whether an expression calls nothing but operations known by their names.

    No value is looked at: `torch` is taken for what it is called.
    """
    for below in ast.walk(node):
        if not isinstance(below, ast.expr):
            continue
        roots: set[str] = set()
        if not isinstance(below, _EXPRESSIONS):
            return False
        if isinstance(below, ast.Call) and not (_is_known(below, roots) and roots <= _KNOWN_ROOTS):
            return False
    return True
