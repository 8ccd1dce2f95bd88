"""Names that one invoke binds and a later one reads.

This, in two invokes of one trace:

    embeddings = model.transformer.wte.output

    model.transformer.wte.output = embeddings

becomes, in the first and in the second:

    embeddings = model.transformer.wte.output
    yield ("bind", "embeddings", embeddings)

    embeddings = yield ("name", "embeddings")
    model.transformer.wte.output = embeddings

Each invoke is a separate machine with separate names, so that invokes that run interleaved do not
disturb each other. Values pass from one to another through these two requests only; `name` waits
until the name is bound, if exactly one earlier binding can be meant.

A name that is read only by a backward block of the later invoke is fetched before that block
opens, since inside it only gradients can be waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import libcst as cst

from ... import requests
from ...spans import Origins
from .. import emit
from .common import Pass, stored


class _NameFinder(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.mentioned: set[str] = set()

    def visit_Name(self, node: cst.Name) -> None:
        self.mentioned.add(node.value)

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        node.value.visit(self)
        return False

    def visit_Arg(self, node: cst.Arg) -> bool:
        node.value.visit(self)
        return False


def mentioned(*nodes: cst.CSTNode | None) -> set[str]:
    """Collect the variable names below the nodes; attributes and keywords are not variables."""
    finder = _NameFinder()
    for node in nodes:
        if node is not None:
            node.visit(finder)
    return finder.mentioned


class _BindingFinder(cst.CSTVisitor):
    """Collect the names that statements bind in their scope, and which of them more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.bound: set[str] = set()
        self.repeated: set[str] = set()
        self._loops = 0

    def _add(self, name: str) -> None:
        if self._loops or name in self.bound:
            self.repeated.add(name)
        self.bound.add(name)

    def _keep(self, target: cst.CSTNode) -> None:
        for node in stored(target):
            if isinstance(node, cst.Name):
                self._add(node.value)

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        self._keep(node.target)

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        if node.value is not None:
            self._keep(node.target)

    def visit_AugAssign(self, node: cst.AugAssign) -> None:
        self._keep(node.target)

    def visit_For(self, node: cst.For) -> None:
        self._loops += 1
        self._keep(node.target)

    def leave_For(self, original_node: cst.For) -> None:
        self._loops -= 1

    def visit_While(self, node: cst.While) -> None:
        self._loops += 1

    def leave_While(self, original_node: cst.While) -> None:
        self._loops -= 1

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
        self._keep(node.target)

    def visit_AsName(self, node: cst.AsName) -> None:
        self._keep(node.name)

    def leave_ExceptHandler(self, original_node: cst.ExceptHandler) -> None:
        # the name of a caught exception is unbound again at the end of its clause
        if original_node.name is not None and isinstance(original_node.name.name, cst.Name):
            self.bound.discard(original_node.name.name.value)

    def visit_MatchAs(self, node: cst.MatchAs) -> None:
        if node.name is not None:
            self._add(node.name.value)

    def visit_MatchStar(self, node: cst.MatchStar) -> None:
        if node.name is not None:
            self._add(node.name.value)

    def visit_ImportAlias(self, node: cst.ImportAlias) -> None:
        if node.asname is None:
            self._add(node.evaluated_name.split(".")[0])

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        self._add(node.name.value)
        return False

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        self._add(node.name.value)
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def visit_CompFor(self, node: cst.CompFor) -> bool:
        return False


def bindings(*nodes: cst.CSTNode) -> set[str]:
    """Collect the names that the nodes bind in their own scope."""
    return _bindings(nodes).bound


def repeated_bindings(*nodes: cst.CSTNode) -> set[str]:
    """Collect the names that the nodes may bind more than once: twice in the text, or in a loop."""
    return _bindings(nodes).repeated


def _bindings(nodes: Iterable[cst.CSTNode]) -> _BindingFinder:
    finder = _BindingFinder()
    for node in nodes:
        node.visit(finder)
    return finder


class SharedNames(Pass):
    """Fetch shared names before the statements that read them, and publish them after bindings."""

    def __init__(
        self,
        origins: Origins,
        fetched: frozenset[str],
        bound: frozenset[str],
        read_inside: Sequence[frozenset[str]] = (),
    ) -> None:
        """Make the pass for one invoke.

        Args:
            origins: the positions of the nodes in the file.
            fetched: names to fetch from earlier invokes.
            bound: names to publish for later invokes.
            read_inside: names that each block inside this one reads, by its number.
        """
        super().__init__(origins)
        self._fetched = fetched
        self._bound = bound
        self._read_inside = read_inside
        # True once the block's own function has been entered (by `visit_FunctionDef`)
        self._inside = False

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        # the outermost function is the block; functions inside it have separate scopes
        first, self._inside = not self._inside, True
        return first

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.BaseSuite:
        body: list[cst.BaseStatement] = []
        for node in updated_node.body:
            span = self.origins.span_of(node)
            read = mentioned(*_heads(node)) | names_read_inside(node, self._read_inside)
            before = [self._fetch(name) for name in sorted(read & self._fetched)]
            after: list[cst.BaseStatement] = []
            if self._bound:
                node, after = self._published(node)
            for generated in (node, *before, *after):
                self.origins.keep(generated, span)
            body.extend((*before, node, *after))
        return updated_node.with_changes(body=body)

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.BaseSuite:
        told = [self._bind(name) for name in sorted(bindings(updated_node) & self._bound)]
        if not told:
            return updated_node
        # names that a backward block has bound are published like others
        body = [cst.SimpleStatementLine(updated_node.body), *told]
        span = self.origins.span_of(original_node)
        for generated in body:
            self.origins.keep(generated, span)
        return emit.block(body)

    def _published(
        self, node: cst.BaseStatement
    ) -> tuple[cst.BaseStatement, list[cst.BaseStatement]]:
        if isinstance(node, (cst.For, cst.With)):
            # names bound by the header are published at the head of the body, before its code runs
            header: list[cst.CSTNode] = (
                [cst.AssignTarget(node.target)] if isinstance(node, cst.For) else list(node.items)
            )
            told = [self._bind(name) for name in sorted(bindings(*header) & self._bound)]
            if told:
                body = emit.block([*told, *emit.statements_of(node.body)])
                node = node.with_changes(body=body)
            return node, []
        names = bindings(*_heads(node)) & self._bound
        if isinstance(node, cst.SimpleStatementLine) and any(
            isinstance(small, cst.Del) for small in node.body
        ):
            return node, []
        return node, [self._bind(name) for name in sorted(names)]

    def _fetch(self, name: str) -> cst.BaseStatement:
        fetch = emit.request(requests.NAME, emit.string(name), statement=True)
        return emit.assign(emit.name(name), fetch)

    def _bind(self, name: str) -> cst.BaseStatement:
        return emit.statement(
            emit.request(requests.BIND, emit.string(name), emit.name(name), statement=True)
        )


def names_read_inside(
    node: cst.BaseStatement, read_inside: Sequence[frozenset[str]]
) -> frozenset[str]:
    """Return the names read by the backward block that a statement opens; none for others."""
    if not isinstance(node, cst.SimpleStatementLine) or not read_inside:
        return frozenset()
    match node.body[0]:
        case cst.Assign(
            value=cst.Yield(
                value=cst.Tuple(
                    elements=[
                        cst.Element(value=cst.SimpleString(value=verb)),
                        cst.Element(value=cst.Integer(value=number)),
                        *_,
                    ]
                )
            )
        ) if verb == emit.string(requests.BACKWARD).value:
            return read_inside[int(number)]
    return frozenset()


class ReadsInside(Pass):
    """Mention the names that an inner block reads in front of the statement that opens it.

    For name analysis only: the result is never run.
    """

    def __init__(self, origins: Origins, read_inside: Sequence[frozenset[str]]) -> None:
        super().__init__(origins)
        self._read_inside = read_inside

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.BaseSuite:
        body: list[cst.BaseStatement] = []
        for node in updated_node.body:
            for name in sorted(names_read_inside(node, self._read_inside)):
                body.append(emit.statement(cst.Expr(emit.name(name))))
            body.append(node)
        return updated_node.with_changes(body=body)


def _heads(node: cst.BaseStatement) -> list[cst.CSTNode]:
    """Return the parts of a statement that are evaluated before its nested statements."""
    if isinstance(node, cst.For):
        return [node.iter]
    if isinstance(node, cst.With):
        return list(node.items)
    if isinstance(node, cst.If):
        orelse = node.orelse
        return [node.test, *(_heads(orelse) if isinstance(orelse, cst.If) else [])]
    if isinstance(node, cst.While):
        return [node.test]
    if isinstance(node, (cst.Try, cst.TryStar)):
        return []
    if isinstance(node, cst.Match):
        return [node.subject, *(case.pattern for case in node.cases)]
    return [node]
