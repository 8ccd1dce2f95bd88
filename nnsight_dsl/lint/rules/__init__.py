"""The rules, one in a file, in the order of their codes.

| codes | about |
|---|---|
| NNS1.. | order: what is asked for too late |
| NNS2.. | paths, and what modules return |
| NNS3.. | values: saved, edited, rebound |
| NNS4.. | where things stand: traces, invokes, backward passes, skips |
| NNS5.. | steps of a generation |
| NNS6.. | names and barriers between invokes |
| NNS7.. | interventions |
| NNS8.. | what cannot be lowered |
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
        name: its name, which reads after "allow ...".
        severity: severity of its findings.
        page: its docstring.
        check: yields its findings in a file.
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
