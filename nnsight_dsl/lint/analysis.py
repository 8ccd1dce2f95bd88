"""The analysis of a file that rules work on: blocks, their accesses, and facts about models.

The name of a method does not prove that `with <anything>.trace(...)` is a block of this package:
many libraries have a method `trace`, `session` or `edit`. A block is accepted as one of this
package only if it accesses a port of the traced object, or opens an invoke of its tracer. All
other `with` statements are ignored, so that the linter raises no false alarms about foreign code.

    file = File(source, module, {"model": structure})
    for machine in file.machines():
        for access in machine.accesses:
            ...

Blocks of a program that is about to run (`at_run`) need no such evidence.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace

from nnsight_dsl.transforms.prefilter import OPENING_CALLS

from .accesses import Access, Machine, ModelKey, Names, Path
from .bindings import Bindings
from .blocks import INTERVENTION, Block, blocks_of
from .model_facts import Structure
from .sources import Source
from .tree import Tree

PARTS_BESIDE = frozenset(
    "image_encoder movq safety_checker text_encoder text_encoder_2 text_encoder_3 vae vocoder "
    "vqvae".split()
)
"""Components of diffusers' pipelines that run before or after the steps of denoising."""


class File:
    """One analysed file.

    Attributes:
        source: its text.
        tree: its syntax tree.
        blocks: its outermost blocks.
        names: resolves the paths behind its names.
        beside: names of modules that run beside the steps of a generation.
    """

    beside: frozenset[str] = PARTS_BESIDE

    def __init__(
        self,
        source: Source,
        module: ast.Module,
        structures: Mapping[str | None, Structure] | None = None,
        meanings: Mapping[str, tuple[str, Path]] | None = None,
    ) -> None:
        self.source = source
        self.tree = Tree(module, source.lines)
        self.blocks = blocks_of(self.tree)
        self.names = Names(Bindings(self.tree), meanings)
        self._given = structures or {}
        self._models: dict[Block, ModelKey | None] = {}
        for block in self.all_blocks():
            self._models[block] = self._model_of(block)
        models = frozenset(model for model in self._models.values() if model is not None)
        self._machines = {block: Machine(block, self.names, models) for block in self.all_blocks()}
        # with `meanings` the file is a program about to run, which needs no evidence
        if meanings is None:
            self.blocks = [block for block in self.blocks if self._is_ours(block)]
        self._structures: dict[ModelKey, Structure | None] = {}

    def line(self, node: ast.expr | ast.stmt) -> str:
        """Return the line number of a node for a message; in a notebook, with the cell number."""
        if self.source.cells is None:
            return str(node.lineno)
        cell, line = self.source.cells[node.lineno - 1]
        return f"{line} of cell {cell}"

    def is_beside_steps(self, path: Path | None) -> bool:
        """Return whether a path leads to a module that runs beside the steps of a generation."""
        return path is not None and bool({*path[:1]} & self.beside)

    def all_blocks(self) -> Iterator[Block]:
        """Iterate over all blocks, the inner ones too."""
        for block in self.blocks:
            yield from block.all_blocks()

    def machines(self) -> Iterator[Machine]:
        """Iterate over the machines of all blocks."""
        for block in self.all_blocks():
            yield self._machines[block]

    def machine(self, block: Block) -> Machine:
        """Return the machine of a block."""
        return self._machines[block]

    def model_of(self, block: Block) -> ModelKey | None:
        """Return the spelling of the model that a block runs on, None if the model is computed."""
        return self._models[block]

    def structure(self, model: ModelKey | None) -> Structure | None:
        """Return the facts about a model, None if there are none."""
        if model is None or not self._given:
            return None
        if model not in self._structures:
            self._structures[model] = self._structure_of(model)
        return self._structures[model]

    def place(self, access: Access) -> tuple[Structure, str] | None:
        """Return the module of an access and its model, None if either is not certain."""
        structure = self.structure(access.model)
        if structure is None or access.path is None:
            return None
        place = structure.place(access.path)
        return None if place is None else (structure, place)

    def _is_ours(self, block: Block) -> bool:
        return block.kind == INTERVENTION or any(map(self._has_evidence, block.all_blocks()))

    def _has_evidence(self, block: Block) -> bool:
        """Return whether a block is an invoke of its parent's tracer, or accesses its own model."""
        if block.kind == "invoke" and block.parent is not None and block.call is not None:
            opener = block.call.func
            owner = opener.value if isinstance(opener, ast.Attribute) else None
            is_tracers = isinstance(owner, ast.Name) and owner.id == block.parent.tracer
            return block.parent.is_run and is_tracers
        model = self._models[block]
        return block.kind in OPENING_CALLS and any(
            access.is_known and access.model == model and access.port != "grad"
            for access in self._machines[block].accesses
        )

    def _model_of(self, block: Block) -> ModelKey | None:
        if block.kind == INTERVENTION:
            return self.names.known("model")
        if block.kind in OPENING_CALLS and block.call is not None:
            opener = block.call.func
            return self.names.spelled(opener.value) if isinstance(opener, ast.Attribute) else None
        return None if block.parent is None else self._models[block.parent]

    def _structure_of(self, model: ModelKey) -> Structure | None:
        root, path = model
        spelled = ".".join([root, *map(str, path)])
        found = self._given.get(spelled)
        is_named = found is not None
        if found is None:
            found = self._given.get(None)
        if found is None:
            return None
        if not is_named and not self._is_plausible(model, found):
            return None
        return replace(found, aliases=found.aliases | self._own_names())

    def _is_plausible(self, model: ModelKey, structure: Structure) -> bool:
        """Return whether a name can mean the given model, judged by the beginnings of its paths."""
        return all(
            structure.fits(access.path)
            for machine in self._machines.values()
            for access in machine.accesses
            if access.model == model and access.path is not None
        )

    def _own_names(self) -> frozenset[str]:
        """Collect names that this file may add to a model, by renaming or by assignment."""
        found: set[str] = set()
        for node in self.tree.walk(self.tree.module):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else None
                name = called.id if isinstance(called, ast.Name) else name
                is_setter = name in ("setattr", "add_module", "register_module")
                values = list(node.args) if is_setter else []
                values += [one.value for one in node.keywords if one.arg == "rename"]
                found |= {
                    below.value
                    for value in values
                    for below in ast.walk(value)
                    if isinstance(below, ast.Constant) and isinstance(below.value, str)
                }
        return frozenset(found)
