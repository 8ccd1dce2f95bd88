"""Faults: one in each rule of the semantics, with the tests that have to notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """A change of one place that breaks a rule.

    Attributes:
        rule: the rule that it breaks.
        file: where.
        old: the text that stands there once.
        new: the text that takes its place.
        tests: the narrowest tests that have to fail.
    """

    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    # ordering
    Fault(
        "a value that has passed is out of order",
        "runtime/driving/lateness.py",
        "if visit >= step or (",
        "if visit > step or (",
        ("tests/test_failures.py",),
    ),
    Fault(
        "nothing comes below a module that has returned",
        "runtime/driving/lateness.py",
        "return messages.parent_passed(machine, request, place)",
        "return None",
        ("tests/samples/test_messages.py",),
    ),
    Fault(
        "a result is there when the model has returned",
        "runtime/driving/driver.py",
        "        self.result = (result,)\n        self._results = {}\n        if self",
        "        self._results = {}\n        if self",
        ("tests/samples/test_failed_runs.py", "tests/guide/test_generation.py"),
    ),
    # rows
    Fault(
        "an invoke sees its rows",
        "runtime/values/rows.py",
        "            return Span(self.start, self.count)\n",
        "            return Span(0, self.count)\n",
        ("tests/equivalence/test_invokes.py",),
    ),
    Fault(
        "rows are multiplied under beam search",
        "runtime/values/rows.py",
        "return Span(self.start * factor, self.count * factor)",
        "return Span(self.start, self.count * factor)",
        ("tests/equivalence/test_generation.py",),
    ),
    Fault(
        "a parameter has no rows",
        "runtime/values/rows.py",
        "    if isinstance(base, nn.Parameter):\n        return True",
        "    if isinstance(base, nn.Parameter):\n        return False",
        ("tests/equivalence/test_views.py",),
    ),
    Fault(
        "rows share no memory",
        "runtime/values/rows.py",
        "return bool(step < extent)",
        "return False",
        ("tests/samples/test_rows.py",),
    ),
    Fault(
        "the gradient of rows is that part of the tensor's",
        "runtime/values/views.py",
        "one.narrow(axis, found[1], found[2])",
        "one.narrow(axis, 0, found[2])",
        ("tests/equivalence/test_views.py", "tests/samples/test_rows.py"),
    ),
    # steps
    Fault(
        "a round pins requests to its step",
        "runtime/machines/steps.py",
        "self.value = self._machine.step = self.next_step or 0",
        "self.value = self.next_step or 0",
        ("tests/equivalence/test_iteration.py",),
    ),
    Fault(
        "behind a loop a block is at the step before it",
        "runtime/machines/steps.py",
        "self._machine.step = self._before",
        "self._before = self._machine.step",
        ("tests/equivalence/test_iteration.py",),
    ),
    Fault(
        "a visit before the first step belongs to it",
        "runtime/tapping/taps.py",
        "step = max(driver.step, 0)",
        "step = driver.step",
        ("tests/equivalence/test_encoder_decoder.py",),
    ),
    # edits
    Fault(
        "an edit with .next() is made once, not in each step",
        "nnsight_dsl/tracing/edit.py",
        '(isinstance(node, ast.Attribute) and node.attr == "next")',
        '(isinstance(node, ast.Attribute) and node.attr == "nex")',
        ("tests/equivalence/test_edits.py",),
    ),
    Fault(
        "edits are made in the order of their definition",
        "nnsight_dsl/tracing/block_run.py",
        "for edit in self.model._edits:",
        "for edit in self.model._edits[::-1]:",
        ("tests/equivalence/test_edits.py",),
    ),
    # barriers
    Fault(
        "a barrier opens for its last participant",
        "runtime/driving/answers.py",
        "if len(barrier.arrived) >= barrier.participants:",
        "if len(barrier.arrived) > barrier.participants:",
        ("tests/equivalence/test_barriers.py",),
    ),
    Fault(
        "a barrier that too few can reach is an error at once",
        "runtime/driving/answers.py",
        "driver.has_met = True",
        "driver.has_met = False",
        ("tests/equivalence/test_barriers.py",),
    ),
    # gradients
    Fault(
        "gradients come in reverse order",
        "runtime/driving/gradients.py",
        "current in _Graph(hooked)",
        "current not in _Graph(hooked)",
        ("tests/equivalence/test_gradients.py",),
    ),
    Fault(
        "a gradient that is edited in place goes on",
        "runtime/driving/gradients.py",
        "return result if result is not value or value._version != version else None",
        "return result if result is not value else None",
        ("tests/equivalence/test_gradients.py",),
    ),
    Fault(
        "an element of a plain object is set in a backward block",
        "runtime/driving/foreign.py",
        "    container[path[-1]] = value\n",
        "    container[path[-1]]\n",
        ("tests/samples/test_backward.py",),
    ),
    # turns
    Fault(
        "families merge by however many steps",
        "runtime/turns.py",
        "        while family.merged_into is not None:",
        "        if family.merged_into is not None:",
        ("tests/samples/test_threads.py",),
    ),
    Fault(
        "a run waits for those that had begun before a merge",
        "runtime/turns.py",
        "            self._wait_for_joined(leader)",
        "            pass",
        ("tests/samples/test_threads.py",),
    ),
    # saves
    Fault(
        "an object that many share leaves by its name only",
        "runtime/machines/saved.py",
        "or (name in program.bound and not isinstance(value, _SHARED_TYPES))",
        "or name in program.bound",
        ("tests/runtime/machines/test_saved.py", "tests/guide"),
    ),
    Fault(
        "names saved before an error leave",
        "runtime/machines/machine.py",
        "        self._take_names_at(raised)\n        # an interrupt",
        "        # an interrupt",
        ("tests/samples/test_failed_runs.py", "tests/guide/test_exceptions.py"),
    ),
    # lowering
    Fault(
        "an index of a change is computed before its value",
        "transforms/source/passes/writes.py",
        "may_rebind = not is_pure(node.value)",
        "may_rebind = False",
        ("tests/samples/test_assignments.py",),
    ),
    Fault(
        "a name with two bindings is not shared early",
        "transforms/source/passes/shared.py",
        "if self._loops or name in self.bound:",
        "if self._loops:",
        ("tests/test_failures.py",),
    ),
    Fault(
        "a return hands its value on",
        "transforms/source/passes/returns.py",
        "values = [] if updated_node.value is None else [updated_node.value]",
        "values: list[cst.BaseExpression] = []",
        ("tests/samples/test_returns.py", "tests/language/test_tools.py"),
    ),
    Fault(
        "the store of a port is no read",
        "transforms/source/passes/reads.py",
        "if not is_port(original_node) or original_node in self._stored:",
        "if not is_port(original_node):",
        ("tests/transforms/test_lowering_cases.py",),
    ),
    # taps
    Fault(
        "a call around the module's class is a visit",
        "runtime/tapping/tapped_class.py",
        "        if not tap.is_entered:\n            return tap.visit",
        "        if tap.is_entered is None:\n            return tap.visit",
        ("tests/samples/test_taps.py",),
    ),
    Fault(
        "a module may come again that has returned",
        "runtime/tapping/taps.py",
        "if self.index is not None and self.index > self.done_step:",
        "if self.index is not None and self.index < self.done_step:",
        ("tests/equivalence/test_reads.py", "tests/runtime"),
    ),
    Fault(
        "operations are named in the order of evaluation",
        "transforms/bytecode/operations.py",
        "name = stem if kind == LOCAL and number == 0 else",
        "name = stem if number == 0 else",
        ("tests/transforms/bytecode",),
    ),
    # writes and skips
    Fault(
        "a module is skipped without a call only for all rows",
        "runtime/values/offers.py",
        "if sum(one.count for one in rows) == rows[0].total:",
        "if rows:",
        ("tests/equivalence/test_hooks_and_capture.py",),
    ),
    Fault(
        "an edit of a replaced tensor is an error",
        "runtime/values/offers.py",
        "        if machine.order != self._order:\n",
        "        if machine.order == self._order:\n",
        ("tests/equivalence/test_writes.py", "tests/equivalence/test_invokes.py"),
    ),
    # studies
    Fault(
        "a forward is not cut short of a cache",
        "runtime/driving/early_stop.py",
        "for machine in self.machines) or bool(self.watchers)",
        "for machine in self.machines)",
        ("tests/equivalence/test_stopping.py",),
    ),
    Fault(
        "the trunk of a sweep stays while a program needs it",
        "runtime/driving/prefix_sharing.py",
        "new = due if self._in_trunk else due[1:]",
        "new = due[1:]",
        ("tests/equivalence/test_sweeps.py",),
    ),
    Fault(
        "a cache keeps no graph",
        "nnsight_dsl/tracing/cache.py",
        "value = tensor.detach() if detach and tensor.requires_grad else tensor",
        "value = tensor",
        ("tests/equivalence/test_caches.py",),
    ),
    Fault(
        "a guard holds for the same values of names only",
        "nnsight_dsl/tracing/guards.py",
        "if value is not known and not (known is _ANY_PLAIN and _is_any_plain(value)):",
        "if value is MISSING:",
        ("tests/samples/test_plain.py",),
    ),
)
