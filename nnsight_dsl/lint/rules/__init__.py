"""The rules, one per file, in the order of their codes.

A rule is a module with `CODE`, `SEVERITY`, a generator function `check(file)` that yields
findings, and a docstring that becomes its page (see `..pages`). Its name is that of the file, and
reads after "allow": it names the mistake, not the remedy. To add a rule, write the module and add
it to `RULES`.

| codes | about |
|---|---|
| NNS1.. | order: values that are asked for too late |
| NNS2.. | paths, and the outputs of modules |
| NNS3.. | values: saved, edited, rebound |
| NNS4.. | nesting: traces, invokes, backward passes, skips |
| NNS5.. | steps of a generation |
| NNS6.. | names and barriers between invokes |
| NNS7.. | interventions |
| NNS8.. | constructs that cannot be lowered |
| NNS9.. | files that cannot be read |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

from ..analysis import File
from ..diagnostics import Finding
from . import (
    access_after_all_steps,
    access_after_result,
    access_out_of_order,
    barrier_count,
    child_after_parent,
    edited_copy,
    first_of_tensor,
    first_of_tensor_replaced,
    gradient_out_of_order,
    gradient_outside_backward,
    idle_operation,
    input_after_output,
    input_beside_invokes,
    intervention_arguments,
    nested_invoke,
    no_input,
    rebinding_without_effect,
    saved_value_edited,
    steps_beyond_generation,
    steps_out_of_order,
    unknown_operation,
    unknown_path,
    unreadable_file,
    unsaved_value,
    unsupported_syntax,
    unsynchronised_name,
    value_beside_invokes,
    value_in_backward,
    value_in_skipped_module,
    write_too_late,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        code: its code.
        name: the file name with dashes, `access-out-of-order`.
        severity: severity of its findings.
        page: its docstring.
        check: yields the findings in a file.
    """

    code: str
    name: str
    severity: str
    page: str
    check: Callable[[File], Iterator[Finding]]

    @property
    def summary(self) -> str:
        """The first line of its page."""
        return self.page.partition("\n")[0]


def _rule(module: ModuleType) -> Rule:
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    return Rule(module.CODE, name, module.SEVERITY, inspect.getdoc(module) or "", module.check)


RULES = tuple(
    map(
        _rule,
        (
            access_out_of_order,
            child_after_parent,
            input_after_output,
            access_after_result,
            access_after_all_steps,
            steps_out_of_order,
            gradient_out_of_order,
            unknown_path,
            unknown_operation,
            first_of_tensor,
            first_of_tensor_replaced,
            idle_operation,
            unsaved_value,
            saved_value_edited,
            rebinding_without_effect,
            write_too_late,
            edited_copy,
            no_input,
            nested_invoke,
            value_beside_invokes,
            input_beside_invokes,
            value_in_backward,
            gradient_outside_backward,
            value_in_skipped_module,
            steps_beyond_generation,
            unsynchronised_name,
            barrier_count,
            intervention_arguments,
            unsupported_syntax,
            unreadable_file,
        ),
    )
)
BY_CODE = {rule.code: rule for rule in RULES}
