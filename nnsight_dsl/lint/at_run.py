"""The rules at the entry of a run: a program is checked once for each wrapper it runs on.

Nothing has to be guessed here: names stand for what they stand for, so it is known which paths
start from the model that runs. What is certain is raised before the model runs, as the error that
the run would have raised: what follows from the paths alone, and stands where the block is sure
to come to. All else is a warning: what runs and means something else than it seems to, and what
the order of the model's first run speaks against, which was recorded on another input.

A finding that is raised is looked for again at the next entry; a program without one is not
looked at again.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from nnsight_dsl import errors
from nnsight_dsl.runtime.locations import Place, children_of
from nnsight_dsl.runtime.tapping.torch_fast_path import has_compiled_function, passes_over_parts
from nnsight_dsl.runtime.tracebacks import traceback_at
from nnsight_dsl.transforms.parsing import one_at_a_time
from nnsight_dsl.transforms.program import Program

from .accesses import Path
from .analysis import File
from .diagnostics import Finding
from .model_facts import Module, Structure
from .rules import (
    access_after_all_steps,
    access_after_result,
    access_out_of_order,
    child_after_parent,
    edited_copy,
    gradient_outside_backward,
    input_after_output,
    nested_invoke,
    rebinding_without_effect,
    saved_value_edited,
    steps_out_of_order,
    unsaved_value,
    value_beside_invokes,
    value_in_backward,
    value_in_skipped_module,
    write_too_late,
)
from .sources import Source
from .suppressions import suppressed_at
from .uses import structure_with_uses

_RAISING = (
    child_after_parent,
    input_after_output,
    access_after_result,
    access_after_all_steps,
    steps_out_of_order,
    nested_invoke,
    value_beside_invokes,
    value_in_backward,
    value_in_skipped_module,
)
_WARNING = (
    access_out_of_order,
    saved_value_edited,
    rebinding_without_effect,
    edited_copy,
    gradient_outside_backward,
)
_MODEL = "model"

_structures: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()
"""What the first run of each model has shown."""

_without_order: WeakSet[nn.Module] = WeakSet()
"""Models of which no run shows the order, since some modules pass over what is inside them."""

_warned: set[tuple[str, int, str]] = set()


class LintWarning(UserWarning):
    """A rule has found something that is not certain to fail."""


def check(
    program: Program,
    model: Place,
    value_of: Callable[[str], Any],
    *,
    raises: bool,
    all_leave: bool,
) -> BaseException | None:
    """Check a program that is about to run.

    Args:
        program: what runs.
        model: the wrapper it runs on.
        value_of: returns what a name stands for around the block.
        raises: return what is certain as an error; otherwise it is a warning as well.
        all_leave: whether names leave the block that were not saved.

    Returns:
        What has to be raised.
    """
    file = _file(program, model, value_of, _structures.get(model._module))
    if file is None:
        return None
    certain: list[tuple[str, Finding]] = []
    for module in _RAISING:
        for finding in module.check(file):
            if _is_certain(file, finding) and not _is_suppressed(file, finding, module.CODE):
                certain.append((module.CODE, finding))
    if certain and raises:
        code, finding = min(certain, key=lambda one: (one[1].node.lineno, one[1].node.col_offset))
        return _error(program, code, finding)
    for module in _WARNING:
        if all_leave and module in (rebinding_without_effect, edited_copy):
            # what stands behind the block, and may read the name, is not seen from here
            continue
        for finding in module.check(file):
            if not _is_suppressed(file, finding, module.CODE):
                certain.append((module.CODE, finding))
    if not all_leave:
        for finding in unsaved_value.check_at_entry(file, value_of):
            if not _is_suppressed(file, finding, unsaved_value.CODE):
                certain.append((unsaved_value.CODE, finding))
        for finding in _late_edits(file, program, model, value_of):
            if not _is_suppressed(file, finding, write_too_late.CODE):
                certain.append((write_too_late.CODE, finding))
    for code, finding in certain:
        place = (program.filename, finding.node.lineno, code)
        if place not in _warned:
            _warned.add(place)
            warnings.warn_explicit(f"{code}: {finding.message}", LintWarning, *place[:2])
    return None


def _late_edits(
    file: File, program: Program, model: Place, value_of: Callable[[str], Any]
) -> Iterator[Finding]:
    """Look for edits that come too late; only for them is a model recorded."""
    structure = structure_with_uses(model._module) if write_too_late.may_find(file) else None
    if structure is not None:
        seen = _file(program, model, value_of, structure)
        if seen is not None:
            yield from write_too_late.check(seen)


def _file(
    program: Program,
    model: Place,
    value_of: Callable[[str], Any],
    structure: Structure | None,
) -> File | None:
    """Analyse the text of a program, with what its names stand for and what is known of a model."""
    tree = _parsed(program)
    if tree is None:
        return None
    lines = [""] * (program.line - 1) + program.source.split("\n")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    meanings: dict[str, tuple[str, Path]] = {}
    for name in names:
        value = value_of(name)
        if isinstance(value, Place) and (value is model or value._root is model):
            path = value._path.split(".") if value._path else []
            meanings[name] = _MODEL, tuple(int(one) if one.isdigit() else one for one in path)
    known: Mapping[str | None, Structure] = {} if structure is None else {_MODEL: structure}
    file = File(Source(program.filename, lines), tree, known, meanings)
    return file if len(file.blocks) == 1 else None


def _parsed(program: Program) -> ast.Module | None:
    text = program.source
    is_indented = text[:1] in (" ", "\t")
    try:
        tree = one_at_a_time(ast.parse)(f"if 1:\n{text}" if is_indented else text)
    except (SyntaxError, RecursionError, MemoryError):
        # a statement that begins in the middle of a line: the block runs unchecked
        return None
    body = tree.body
    if is_indented and isinstance(body[0], ast.If):
        body = body[0].body
    if isinstance(body[0], ast.FunctionDef):
        # the text begins behind the decorator, by which the function is known for a block
        intervene = ast.copy_location(ast.Name("intervene", ast.Load()), body[0])
        body[0].decorator_list = [intervene]
    module = ast.Module(body, [])
    ast.increment_lineno(module, program.line - (2 if is_indented else 1))
    return module


def _is_certain(file: File, finding: Finding) -> bool:
    if not finding.raises:
        return False
    block = file.blocks[0]
    conditions = file.tree.conditions(finding.node, block.node)
    # what stands behind an early return is not sure to be come to
    returns = any(
        isinstance(node, ast.Return) and node.lineno < finding.node.lineno for node in block.nodes()
    )
    return conditions.always and not conditions.is_handled and not returns


def _is_suppressed(file: File, finding: Finding, code: str) -> bool:
    node = finding.node
    return suppressed_at(file.source.lines, node.lineno, node.end_lineno or 0, code)


def _error(program: Program, code: str, finding: Finding) -> BaseException:
    kind: type[Exception] = getattr(errors, finding.raises)
    found = kind(f"{finding.message} ({code})")
    found.__traceback__ = traceback_at(program.filename, finding.node.lineno, program.name)
    return found


class OrderWatcher:
    """Notes the order in which the modules of a model return, in its first run."""

    def __init__(self, model: Place) -> None:
        self._model = model
        self._returned: list[str] = []

    @staticmethod
    def for_first_run(model: Place) -> OrderWatcher | None:
        """Return a watcher where the order of a model is not known yet."""
        module: nn.Module = model._module
        if module in _structures or module in _without_order:
            return None
        # to see all modules called, a run would leave what is compiled
        if any(passes_over_parts(one) or has_compiled_function(one) for one in module.modules()):
            _without_order.add(module)
            return None
        return OrderWatcher(model)

    def record(self, place: Place, inputs: Any, output: Any, factor: int) -> None:
        """See a module return; only its path is kept."""
        if not self._returned or self._returned[-1] != "":
            self._returned.append(place._path)

    def watches(self, place: Place) -> bool:
        """Leave a run as it is: it is the user's."""
        return False

    def finish(self) -> None:
        """Keep the order of the first forward, if it has come to its end."""
        if "" in self._returned:
            # the module is looked up now: a model that is loaded late was loaded meanwhile
            module: nn.Module = self._model._module
            _structures[module] = Structure(dict(_ordered(module, self._returned)), True)
            # what was checked without the order is checked with it
            self._model.__dict__["_linted"].clear()


def _ordered(module: nn.Module, returned: list[str]) -> Iterator[tuple[str, Module]]:
    """Turn the order of returns into times at which calls began and ended."""
    # in units of the number of calls: a call begins before the first call inside it does
    visits: dict[str, list[tuple[int, int]]] = {}
    width = len(returned) + 1
    open_calls: list[tuple[str, int]] = []
    for number, path in enumerate(returned, start=1):
        begin = number * width - 1
        prefix = f"{path}." if path else ""
        while open_calls and open_calls[-1][0].startswith(prefix) and open_calls[-1][0] != path:
            begin = open_calls.pop()[1] - 1
        open_calls.append((path, begin))
        visits.setdefault(path, []).append((begin, number * width))
    for path, each in module.named_modules(remove_duplicate=False):
        names = tuple(name for name, child in children_of(each).items() if child is not None)
        yield path, Module(names, visits=tuple(visits.get(path, ())))
