"""Checks at the entry of a run: rules applied to a program, once for each wrapper it runs on.

The values of names are known here, so paths that start from the running model are recognised with
certainty. Findings are reported in two ways:

- A certain failure raises, before the model runs, the error that the run itself would raise. This
  needs a finding that follows from the paths alone, at a line that the block is certain to reach.
- Other findings are warnings: code that runs but means something else than it seems to, and
  accesses that contradict the module order of the model's first run, which was recorded on another
  input and may differ.

    logits = model.lm_head.output
    hidden = model.transformer.h[1].output      # LintWarning: NNS101: ... has already passed

A program without a certain failure is checked once; one with a failure is checked at each entry,
since the user may have caught the error. A check must not change the run: an analysis that fails
(the text does not parse) gives no findings.
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
from nnsight_dsl.transforms.parsing import parsed_statements
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
_MODEL = "<model>"
"""What names of places of the running model mean: its root, which no text can spell."""

_structures: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()
"""Facts about each model from its first run: its modules and their order."""

_without_order: WeakSet[nn.Module] = WeakSet()
"""Models whose order is never recorded, since compiled or fused modules hide those inside them."""

_warned: set[tuple[str, int, str]] = set()
"""File, line and code of the warnings that were issued, so that each is issued once."""


class LintWarning(UserWarning):
    """A finding of the linter that is not certain to fail in the run."""


def check(
    program: Program,
    model: Place,
    value_of: Callable[[str], Any],
    *,
    raises: bool,
    all_leave: bool,
) -> BaseException | None:
    """Check a program that is about to run, and issue warnings.

    Args:
        program: the program.
        model: the wrapper it runs on.
        value_of: returns the value of a name around the block.
        raises: True to return a certain failure as an error; False to warn about it as well.
        all_leave: True if unsaved names leave the block too, so that rules about unsaved values do
            not apply.

    Returns:
        The error to raise, None if there is no certain failure.
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
            # code after the block may read the name, and is not visible from here
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
    """Find edits that come too late.

    Recording the model is slow, so it is done only if the block has an edit that may be late.
    """
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
    """Analyse the text of a program, with the places its names are bound to and the model facts.

    None if the text does not parse or holds several blocks.
    """
    tree = _parsed(program)
    if tree is None:
        return None
    lines = [""] * (program.line - 1) + program.source.split("\n")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    meanings: dict[str, tuple[str, Path]] = {}
    for name in names:
        value = value_of(name)
        if isinstance(value, Place) and _is_of(value, model):
            path = value._path.split(".") if value._path else []
            meanings[name] = _MODEL, tuple(int(one) if one.isdigit() else one for one in path)
    # the facts about a part are those of the module that runs, with paths from there
    key = f"{_MODEL}.{model._path}" if model._path else _MODEL
    known: Mapping[str | None, Structure] = {} if structure is None else {key: structure}
    file = File(Source(program.filename, lines), tree, known, meanings)
    file.beside = _beside(model)
    return file if len(file.blocks) == 1 else None


def _is_of(place: Place, model: Place) -> bool:
    """Return whether a place belongs to a wrapper, or to the model that it wraps a part of."""
    return place is model or place._root is model or place._root is model._whole()


def _beside(model: Place) -> frozenset[str]:
    if not getattr(model, "_has_parts_beside", False):
        return frozenset()
    stepping = model._stepping()._path.partition(".")[0]  # type: ignore[attr-defined]
    return frozenset(children_of(model._module)) - {stepping}


def _parsed(program: Program) -> ast.Module | None:
    try:
        body = parsed_statements(program.source, program.line)
    except (SyntaxError, RecursionError, MemoryError):
        # a statement that begins in the middle of a line: the block runs unchecked
        return None
    if isinstance(body[0], ast.FunctionDef):
        # the text lacks the decorator, by which the analysis recognises an intervention
        intervene = ast.copy_location(ast.Name("intervene", ast.Load()), body[0])
        body[0].decorator_list = [intervene]
    return ast.Module(body, [])


def _is_certain(file: File, finding: Finding) -> bool:
    if not finding.raises:
        return False
    block = file.blocks[0]
    conditions = file.tree.conditions(finding.node, block.node)
    # code after an early return may not be reached
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
    """Record the order in which the modules of a model return, in its first run.

    It has the interface of a cache of module outputs, and is attached to a run like one.
    """

    def __init__(self, model: Place) -> None:
        self._model = model
        self._returned: list[str] = []

    @staticmethod
    def for_first_run(model: Place) -> OrderWatcher | None:
        """Return a watcher if the order of a model is unknown and can be recorded, else None."""
        module: nn.Module = model._module
        if model._path:
            # a part of a model, of which a program may name places outside
            return None
        if module in _structures or module in _without_order:
            return None
        if getattr(model, "_has_parts_beside", False):
            # the order of one forward is meant, and such a run has one of each step
            return None
        # to see all calls, the run would have to leave compiled code, and so be slower
        if any(passes_over_parts(one) or has_compiled_function(one) for one in module.modules()):
            _without_order.add(module)
            return None
        return OrderWatcher(model)

    def record(self, place: Place, inputs: Any, output: Any, factor: int) -> None:
        """Record the path of a module that returns, up to the end of the first forward."""
        if not self._returned or self._returned[-1] != "":
            self._returned.append(place._path)

    def watches(self, place: Place) -> bool:
        """Return False: the run must not be changed for the sake of the watcher."""
        return False

    def finish(self) -> None:
        """Keep the order of the first forward, if it has finished."""
        if "" in self._returned:
            # looked up now, because a lazily loaded model has been loaded since `__init__`
            module: nn.Module = self._model._module
            _structures[module] = Structure(dict(_ordered(module, self._returned)), True)
            # programs that were checked without the order are checked again with it
            self._model.__dict__["_linted"].clear()


def _ordered(module: nn.Module, returned: list[str]) -> Iterator[tuple[str, Module]]:
    """Derive begin and end times of calls from the order of returns, and describe each module.

    The begin of a call is not recorded. It is placed just before the begin of the first call
    inside it, which is the earliest that the order of returns implies.
    """
    # returns are `width` apart, which leaves room for the begins of all enclosing calls
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
