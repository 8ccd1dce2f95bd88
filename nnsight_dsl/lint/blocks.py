"""Finding the blocks of a file in its syntax tree.

A block is a `with` statement whose item calls one of the opening methods (`trace`, `invoke`,
`backward`, ...), or a function decorated with `@intervene`. Blocks nest: an invoke is a child of
its trace. Names are not resolved here, so a `with` of another library may look like a block;
`analysis.File` sorts those out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from nnsight_dsl.transforms.prefilter import OPENING_CALLS
from nnsight_dsl.transforms.source.unsupported import INNER_BLOCKS

from .tree import Tree

MODEL_PORTS = frozenset({"output", "input", "inputs"})
INTERVENTION = "intervention"


@dataclass(eq=False)
class Block:
    """A block and the blocks inside it.

    Attributes:
        kind: the method that opens it (`"trace"`, `"invoke"`, `"backward"`, ...), or
            `"intervention"` for the body of an `@intervene` function.
        node: the `with` statement, or the function.
        call: the call that opens it; None for an intervention.
        body: its statements.
        target: the target of `as`, None if there is none.
        tree: the tree of its file.
        parent: the enclosing block, None for an outermost one.
        children: the blocks directly inside it, in order.
    """

    kind: str
    node: ast.With | ast.FunctionDef
    call: ast.Call | None
    body: list[ast.stmt]
    target: ast.expr | None
    tree: Tree
    parent: Block | None = None
    children: list[Block] = field(default_factory=list)
    _nodes: list[ast.AST] | None = None

    @property
    def is_run(self) -> bool:
        """Whether the block starts a run of the model: a trace, a generation or a scan."""
        return self.kind in ("trace", "generate", "scan", "pipe")

    @property
    def invokes(self) -> list[Block]:
        """The invokes directly in this block."""
        return [child for child in self.children if child.kind == "invoke"]

    @property
    def tracer(self) -> str | None:
        """The name bound to the tracer, None if `as` binds no single name."""
        return self.target.id if isinstance(self.target, ast.Name) else None

    def all_blocks(self) -> Iterator[Block]:
        """Iterate over this block and all blocks inside it."""
        yield self
        for child in self.children:
            yield from child.all_blocks()

    def nodes(self) -> list[ast.AST]:
        """Return the nodes of this block, without the bodies of the blocks inside it."""
        if self._nodes is None:
            hidden: set[ast.AST] = set()
            for child in self.children:
                hidden.update(*map(self.tree.walk, child.body))
            self._nodes = [
                node
                for statement in self.body
                for node in self.tree.walk(statement)
                if node not in hidden
            ]
        return self._nodes

    def function(self) -> ast.AST:
        """Return the function or module around the block; an intervention's is itself."""
        if isinstance(self.node, ast.FunctionDef):
            return self.node
        return self.tree.function_of(self.node)


def blocks_of(tree: Tree) -> list[Block]:
    """Find the outermost blocks of a file; their `children` hold the others."""
    found: list[Block] = []
    by_node: dict[ast.AST, Block] = {}
    for node in tree.walk(tree.module):
        if isinstance(node, (ast.With, ast.FunctionDef)):
            block = _block_at(node, tree)
            if block is not None:
                by_node[node] = block
                around = next((by_node[one] for one in tree.above(node) if one in by_node), None)
                block.parent = around
                (found if around is None else around.children).append(block)
    return found


def _block_at(node: ast.AST, tree: Tree) -> Block | None:
    if isinstance(node, ast.With):
        for index, item in enumerate(node.items):
            call = item.context_expr
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                kind = call.func.attr
                if kind in INNER_BLOCKS:
                    body: list[ast.stmt] = list(node.body)
                    if index + 1 < len(node.items) and kind in OPENING_CALLS:
                        # later items may open an inner block, which this analysis cannot express
                        return None
                    return Block(kind, node, call, body, item.optional_vars, tree)
    if isinstance(node, ast.FunctionDef) and any(map(is_intervene, node.decorator_list)):
        return Block(INTERVENTION, node, None, list(node.body), None, tree)
    return None


def is_intervene(decorator: ast.expr) -> bool:
    """Return whether a decorator is `@intervene`."""
    if isinstance(decorator, ast.Attribute):
        return decorator.attr == "intervene"
    return isinstance(decorator, ast.Name) and decorator.id == "intervene"
