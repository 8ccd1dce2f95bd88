"""Lowering: compile the text of one `with` statement to its program.

The text is parsed twice: by `ast`, which decides whether it is valid Python and from which the
accesses are listed, and by `libcst`, whose tree the passes rewrite. For example

    with model.trace("Hello"):
        h = model.transformer.h[3].output

becomes

    def block(model):
        h = (yield ("read", model.transformer.h[3], "output"))
        yield ("end",)

The passes run in this order:

1. frame calls (`super()`, `locals()`) and names rebound by other functions, in the user's text as
   it is written;
2. blocks: inner blocks are cut out, so that later passes see this block only;
3. comprehensions: they turn expressions into functions, in which the later passes then work;
4. steps: a `with` over steps becomes a loop, so that later passes see one form;
5. shared names: before the reads, because a fetch goes in front of the statement that reads;
6. `return`, in a function or a last block;
7. writes: before the reads, since a write may leave a load for them;
8. reads;
9. saves, which are calls rather than requests, and apply in nested functions too.

The rewritten tree is printed, parsed by `ast`, given the positions of the user's text (see
`spans.py`) and compiled. `refuse_unsupported` runs first of all, so a construct that cannot be
lowered is reported before anything is rewritten.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import CodeType

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from .. import names, requests
from ..asserts import rewrite_asserts
from ..errors import InternalError
from ..program import Program
from ..recipes import write_recipe
from ..spans import Origins, Span, relocate
from . import emit
from .accesses import states_of
from .facts import first_items, saved_names, state_blocks
from .passes.blocks import Blocks, ChildBlock
from .passes.comprehensions import Comprehensions, label_of
from .passes.frames import FrameCalls
from .passes.reads import Reads
from .passes.rebound import ReboundNames
from .passes.returns import Returns
from .passes.saves import Saves
from .passes.shared import ReadsInside, SharedNames, bindings, repeated_bindings
from .passes.steps import Steps
from .passes.writes import Writes
from .plain import plain_of
from .scopes import Names, mangled, names_of
from .surroundings import Surroundings
from .swaps import keep_order_of_stores
from .unsupported import INNER_BLOCKS, refuse_unsupported

_FACTORY = "_nns_factory"
_FOR = re.compile(r"\bfor\b")


@dataclass(slots=True)
class _Unit:
    """A block being lowered: its function so far, its inner blocks and its shared names.

    `function` is replaced by each pass; the sets of names and `params` are filled in by
    `_share_names`, `_finish` and `_choose_params`.
    """

    label: str
    body: list[ast.stmt]
    origin: Span
    function: cst.FunctionDef
    children: list[_Unit]
    kind: str = "block"
    fetched: frozenset[str] = frozenset()
    waits_for: frozenset[str] = frozenset()
    unsynchronised: frozenset[str] = frozenset()
    params: tuple[str, ...] = ()
    names: Names = field(default_factory=Names)


def lower_block(node: ast.With, item: int, around: Surroundings) -> Program:
    """Lower the block of a `with` statement.

    Args:
        node: the statement, with positions in `around.lines`.
        item: index of the item that opens the block; later items belong to the block.
        around: the context of the statement.

    Raises:
        UnsupportedSyntaxError: the block contains a construct that cannot be lowered.
    """
    is_alone = item + 1 == len(node.items)
    user_body: list[ast.stmt] = list(node.body)
    if not is_alone:
        user_body = [ast.copy_location(ast.With(node.items[item + 1 :], node.body), node)]
    # before libcst, whose parser does not accept all syntax that is refused here
    refuse_unsupported(user_body, around.filename, around.lines, is_last=around.is_last)
    outer, origins, text = _parsed(node, around)
    statement = cst.ensure_type(outer, cst.With)
    body = emit.statements_of(statement.body)
    if not is_alone:
        rest = statement.with_changes(items=statement.items[item + 1 :], leading_lines=[])
        origins.keep(rest, origins.span_of(statement))
        body = [rest]
    span = Span(node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
    unit = _unit("block", body, user_body, span, origins, text, around)
    if around.is_last and "return" in text:
        unit.function = _visited(unit.function, Returns(origins))
    return _program(unit, origins, around, write_recipe(node, item, around))


def lower_function(node: ast.FunctionDef, around: Surroundings) -> Program:
    """Lower a whole function, whose arguments become the parameters of the program.

    Args:
        node: the function, with positions in `around.lines`.
        around: the context of the body; `locals` are the arguments and the free variables.

    Raises:
        UnsupportedSyntaxError: the function contains a construct that cannot be lowered.
    """
    refuse_unsupported(node.body, around.filename, around.lines, may_return=True)
    outer, origins, text = _parsed(node, around)
    body = emit.statements_of(cst.ensure_type(outer, cst.FunctionDef).body)
    span = Span(node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
    unit = _unit("block", body, list(node.body), span, origins, text, around)
    unit.function = _visited(unit.function, Returns(origins))
    return _program(unit, origins, around, write_recipe(node, None, around))


def _parsed(
    node: ast.With | ast.FunctionDef, around: Surroundings
) -> tuple[cst.BaseStatement, Origins, str]:
    """Parse the text of one statement, and record the position of each node in the file."""
    first, last = node.lineno, node.end_lineno or node.lineno
    text = "\n".join(around.lines[first - 1 : last]) + "\n"
    shift = first - 1
    if node.col_offset:
        text, shift = f"if 1:\n{text}", shift - 1
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    origins = Origins()
    for found, position in wrapper.resolve(PositionProvider).items():
        start, end = position.start, position.end
        span = Span(start.line, start.column, end.line, end.column).moved(shift)
        origins.keep(found, span)
    outer: cst.BaseStatement = wrapper.module.body[0]
    if node.col_offset:
        outer = emit.statements_of(cst.ensure_type(outer, cst.If).body)[0]
    return outer, origins, text


def _unit(
    label: str,
    body: Sequence[cst.BaseStatement],
    user_body: list[ast.stmt],
    span: Span,
    origins: Origins,
    text: str,
    around: Surroundings,
) -> _Unit:
    """Run the first passes over one block and over the blocks inside it; see `_finish`."""
    function = emit.function(label, [], body)
    origins.keep(function, span)
    if any(call in text for call in ("super", "locals", "vars")):
        function = _visited(function, FrameCalls(origins, around.first_argument))
    # a name that the block binds is local to the block, so it is not looked up outside
    rebound = around.rebound - bindings(*body)
    if rebound:
        function = _visited(function, ReboundNames(origins, rebound))
    blocks = Blocks(origins)
    if any(f".{call}(" in text for call in INNER_BLOCKS):
        function = _visited(function, blocks)
    if _FOR.search(text):
        comprehensions = Comprehensions(origins)
        function = _visited(function, comprehensions)
        if comprehensions.functions:
            head = [*comprehensions.functions, *emit.statements_of(function.body)]
            function = _with_body(function, head, origins)
    if ".iter" in text or ".all(" in text:
        function = _visited(function, Steps(origins))
    children = _child_units(label, blocks.children, function, user_body, origins, text, around)
    return _Unit(label, user_body, span, function, children)


def _child_units(
    label: str,
    found: Sequence[ChildBlock],
    function: cst.FunctionDef,
    user_body: Sequence[ast.stmt],
    origins: Origins,
    text: str,
    around: Surroundings,
) -> list[_Unit]:
    bodies = {
        (node.lineno, node.end_lineno): node
        for statement in user_body
        for node in ast.walk(statement)
        if isinstance(node, ast.With)
    }
    units = []
    for number, child in enumerate(found):
        span = origins.span_of(child.origin)
        if span is None:
            raise InternalError("an inner block has lost its position")
        user_node = bodies[span.line, span.end_line]
        units.append(
            _unit(
                f"{label}_{number}", child.body, list(user_node.body), span, origins, text, around
            )
        )
        units[-1].kind = child.kind
    invokes = [i for i, child in enumerate(found) if child.kind == "invoke"]
    _share_names(
        [units[i] for i in invokes],
        [found[i] for i in invokes],
        bindings(*emit.statements_of(function.body)),
        origins,
    )
    return units


def _share_names(
    units: Sequence[_Unit],
    found: Sequence[ChildBlock],
    bound_outside: set[str],
    origins: Origins,
) -> None:
    """Add the requests by which invokes share names: `bind` in the earlier, `name` in the later.

    A name is waited for (`waits_for`) only if a single earlier invoke binds it, and binds it once;
    otherwise no one value is meant, and the name is `unsynchronised` if some binding repeats.
    """
    bodies = [emit.statements_of(unit.function.body) for unit in units]
    bound = [bindings(*body) for body in bodies]
    needed: list[frozenset[str]] = []
    inside = [[_names_read(child, origins) for child in unit.children] for unit in units]
    for unit in units:
        needed.append(_names_read(unit, origins))
    fetched: list[set[str]] = [set() for _ in units]
    told: list[set[str]] = [set() for _ in units]
    for reader, unit in enumerate(units):
        for name in sorted(needed[reader] - bound_outside):
            binders = [i for i in range(reader) if name in bound[i]]
            if not binders:
                continue
            fetched[reader].add(name)
            for binder in binders:
                told[binder].add(name)
            repeated = any(
                found[i].in_loop or name in repeated_bindings(*bodies[i]) for i in binders
            )
            if len(binders) == 1 and not repeated:
                unit.waits_for |= {name}
            elif repeated:
                unit.unsynchronised |= {name}
    for unit, fetch, tell, read in zip(units, fetched, told, inside, strict=True):
        unit.fetched = frozenset(fetch)
        if fetch or tell:
            unit.function = _visited(
                unit.function, SharedNames(origins, frozenset(fetch), frozenset(tell), read)
            )


def _names_read(unit: _Unit, origins: Origins) -> frozenset[str]:
    """Return the names that a block, or a block inside it, may read before it binds them."""
    inside = [_names_read(child, origins) for child in unit.children]
    function = (
        _visited(unit.function, ReadsInside(origins, inside)) if any(inside) else unit.function
    )
    found = names_of(_text(function))
    return found.read | found.read_first


def _program(unit: _Unit, origins: Origins, around: Surroundings, recipe: str) -> Program:
    _finish(unit, origins, around.class_name)
    _choose_params(unit, around.locals)
    functions = _functions(unit, origins)
    # under prefixed names, since the user's block may use a name such as `block`
    hidden = [
        one.with_changes(name=emit.name(f"{names.PREFIX}{one.name.value}")) for one in functions
    ]
    for one, whole in zip(hidden, functions, strict=True):
        origins.keep(one, origins.span_of(whole))
    factory = emit.function(_FACTORY, names.INJECTED, hidden)
    module = cst.Module([factory])
    if around.class_name is not None:
        # compiled inside a class of that name, so that private names (__x) are mangled
        module = cst.Module([cst.ClassDef(cst.Name(around.class_name), emit.block([factory]))])
    wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
    positions = wrapper.resolve(PositionProvider)
    spans: dict[Span, Span] = {}
    for node, span in origins.items():
        position = positions.get(node)
        if position is not None:
            start, end = position.start, position.end
            spans.setdefault(Span(start.line, start.column, end.line, end.column), span)
    lowered = wrapper.module.code
    tree = ast.parse(lowered)
    relocate(tree, lowered.splitlines(), around.lines, spans, unit.origin)
    keep_order_of_stores(tree)
    if around.rewrites_asserts:
        rewrite_asserts(tree)
    compiled = compile(tree, around.filename, "exec", flags=around.flags, dont_inherit=True)
    codes = _function_codes(compiled)
    texts = {function.name.value: _text(function) for function in functions}
    return _built(unit, around, codes, texts, recipe, count())


def _finish(unit: _Unit, origins: Origins, class_name: str | None) -> None:
    """Run the passes that come after the sharing of names, children first."""
    for child in unit.children:
        _finish(child, origins, class_name)
    for rewrite in (Writes(origins), Reads(origins), Saves(origins)):
        unit.function = _visited(unit.function, rewrite)
    # a function without a yield is not a generator, so the end of the block is a request too
    end = emit.statement(emit.request(requests.END, statement=True))
    origins.keep(end, unit.origin)
    body = [*emit.statements_of(unit.function.body), end]
    unit.function = _with_body(unit.function, body, origins)
    unit.names = names_of(_text(unit.function), class_name)


def _choose_params(unit: _Unit, outer: frozenset[str]) -> None:
    known = outer | unit.names.bound
    for child in unit.children:
        _choose_params(child, known)
    wanted = unit.names.read_first | unit.names.cut_off | (unit.names.read & outer)
    for child in unit.children:
        wanted |= (set(child.params) - unit.names.bound) & outer
    unit.params = tuple(sorted(wanted))


def _functions(unit: _Unit, origins: Origins) -> list[cst.FunctionDef]:
    guards = []
    for name in unit.params:
        # a name around the block may be unbound: then it is unbound in the block as well
        test = cst.Comparison(
            emit.name(name), [cst.ComparisonTarget(cst.Is(), emit.name(names.MISSING_NAME))]
        )
        guard = cst.If(test, cst.SimpleStatementSuite([cst.Del(emit.name(name))]))
        origins.keep(guard, unit.origin.start())
        guards.append(guard)
    function = unit.function.with_changes(
        params=emit.function("block", unit.params, []).params,
        body=emit.block([*guards, *emit.statements_of(unit.function.body)]),
    )
    origins.keep(function, unit.origin)
    found = [function]
    for child in unit.children:
        found.extend(_functions(child, origins))
    return found


def _built(
    unit: _Unit,
    around: Surroundings,
    codes: dict[str, CodeType],
    texts: dict[str, str],
    recipe: str,
    numbers: Iterator[int],
) -> Program:
    number = next(numbers)  # before the children take theirs: preorder, as in `all_programs`
    children = tuple(
        _built(child, around, codes, texts, recipe, numbers) for child in unit.children
    )
    opens_others = any(child.kind not in ("backward", "invoke") for child in unit.children)
    return Program(
        kind=unit.kind,
        name=around.name,
        filename=around.filename,
        line=unit.origin.line,
        source="\n".join(around.lines[unit.origin.line - 1 : unit.origin.end_line]),
        lowered=texts[unit.label],
        code=_renamed(codes[f"{names.PREFIX}{unit.label}"], around.name),
        params=unit.params,
        bound=unit.names.bound,
        saved_names=frozenset(mangled(name, around.class_name) for name in saved_names(unit.body)),
        states=states_of(unit.body, around.lines),
        plain=None if opens_others else plain_of(unit.body, unit.fetched, frozenset(unit.params)),
        children=children,
        fetched=unit.fetched,
        waits_for=unit.waits_for,
        unsynchronised=unit.unsynchronised,
        outer_is_global=not around.is_function,
        state_blocks=state_blocks(unit.body),
        first_items=first_items(unit.body),
        looks_outside=bool(around.rebound),
        recipe=recipe,
        number=number,
    )


def _visited(function: cst.FunctionDef, rewrite: cst.CSTTransformer) -> cst.FunctionDef:
    return cst.ensure_type(function.visit(_RootFunction(rewrite)), cst.FunctionDef)


class _RootFunction(cst.CSTTransformer):
    """Apply a pass to the body of a function, since a pass by itself does not enter functions."""

    def __init__(self, rewrite: cst.CSTTransformer) -> None:
        super().__init__()
        self._rewrite = rewrite

    def on_visit(self, node: cst.CSTNode) -> bool:
        return isinstance(node, cst.FunctionDef)

    def on_leave(  # type: ignore[override]
        self, original_node: cst.CSTNode, updated_node: cst.CSTNode
    ) -> cst.CSTNode:
        if isinstance(original_node, cst.FunctionDef):
            return original_node.with_changes(body=original_node.body.visit(self._rewrite))
        return updated_node


def _with_body(
    function: cst.FunctionDef, body: Sequence[cst.BaseStatement], origins: Origins
) -> cst.FunctionDef:
    changed = function.with_changes(body=emit.block(body))
    origins.keep(changed, origins.span_of(function))
    return changed


def _text(function: cst.FunctionDef) -> str:
    return cst.Module([function]).code


def _function_codes(code: CodeType) -> dict[str, CodeType]:
    """Return the code objects of the blocks in a compiled module, by function name."""
    inside = {const.co_name: const for const in code.co_consts if isinstance(const, CodeType)}
    if _FACTORY not in inside:
        (code,) = inside.values()
        return _function_codes(code)
    factory = inside[_FACTORY]
    return {const.co_name: const for const in factory.co_consts if isinstance(const, CodeType)}


def _renamed(code: CodeType, name: str) -> CodeType:
    """Rename a code object to the user's function, and generated scopes to `<listcomp>` etc."""
    consts = tuple(
        _renamed(const, label_of(const.co_name) or const.co_name)
        if isinstance(const, CodeType)
        else const
        for const in code.co_consts
    )
    return code.replace(co_name=name, co_qualname=name, co_consts=consts)
