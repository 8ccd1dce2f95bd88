"""Stack analysis: which instructions may have pushed each value on the stack of a function.

At `CALL`, the name of the callee is found by asking which instruction pushed it. The analysis is a
fixpoint iteration over the control flow graph: it follows each path, merges the stacks of paths
that meet, and continues as long as merging adds something. Each slot of a stack is the set of
instructions that may have pushed it, usually one.

    LOAD_FAST self, LOAD_ATTR mlp, LOAD_FAST x, CALL 1
    # before CALL: (..., {LOAD_ATTR}, {LOAD_ATTR}, {LOAD_FAST x})

It relies on the stack effects that the library `bytecode` knows, with corrections in `_EFFECTS`.
A wrong effect shows as paths that meet with different depths, which raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from bytecode import Bytecode, Instr, Label
from bytecode.instr import UNSET, TryBegin

Source: TypeAlias = tuple[int, int]
"""The index of an instruction, and the number of the value among those it pushes, deepest first."""

Slot: TypeAlias = frozenset[Source]
Stack: TypeAlias = tuple[Slot, ...]


def stacks_before(code: Bytecode) -> Sequence[Stack | None]:
    """Return the stack before each entry of a function's code, None for unreachable entries.

    Raises:
        ValueError: paths meet with stacks of different depths, or an instruction pops more values
            than there are.
    """
    at_label = {entry: i for i, entry in enumerate(code) if isinstance(entry, Label)}
    found: list[Stack | None] = [None] * len(code)
    todo: list[tuple[int, Stack]] = [(0, ())]
    while todo:
        i, stack = todo.pop()
        while i < len(code):
            merged = _merged(found[i], stack)
            if merged == found[i]:
                break
            found[i] = stack = merged
            entry = code[i]
            if isinstance(entry, TryBegin):
                depth = len(stack) if entry.stack_depth is UNSET else int(entry.stack_depth)
                raised = [frozenset({(i, k)}) for k in range(1 + entry.push_lasti)]
                todo.append((at_label[_label(entry.target)], (*stack[:depth], *raised)))
            if isinstance(entry, Instr):
                if isinstance(entry.arg, Label):
                    todo.append((at_label[entry.arg], _after(entry, i, stack, jump=True)))
                if entry.is_final():
                    break
                stack = _after(entry, i, stack, jump=False)
            i += 1
    return found


_EFFECTS = {
    # the library counts only the net effect of these
    "BEFORE_WITH": (1, 2),
    "LOAD_METHOD": (1, 2),
    "STORE_FAST_LOAD_FAST": (1, 1),
    # a generator's first resumption pushes the sent value; CPython counts it from 3.13 on
    "RETURN_GENERATOR": (0, 1),
}
"""Numbers of values popped and pushed, for instructions that `bytecode` does not describe fully."""


def _effect(instruction: Instr, *, jump: bool) -> tuple[int, int]:
    first, then = instruction.pre_and_post_stack_effect(jump=jump)
    # for an instruction that pops nothing, `bytecode` gives the pushed values as the first number
    return max(-first, 0) + max(-then, 0), max(then, 0) + max(first, 0)


def _label(target: object) -> Label:
    if not isinstance(target, Label):
        raise TypeError(f"{target!r} is not a label")
    return target


def _merged(known: Stack | None, stack: Stack) -> Stack:
    if known is None:
        return stack
    if len(known) != len(stack):
        raise ValueError(f"paths meet with {len(known)} and {len(stack)} values on the stack")
    return tuple(one | other for one, other in zip(known, stack, strict=True))


def _after(instruction: Instr, index: int, stack: Stack, *, jump: bool) -> Stack:
    arg = instruction.arg
    if instruction.name == "SWAP" and isinstance(arg, int):
        swapped = [*stack]
        swapped[-1], swapped[-arg] = swapped[-arg], swapped[-1]
        return tuple(swapped)
    if instruction.name == "COPY" and isinstance(arg, int):
        return (*stack, stack[-arg])
    taken, pushed = _EFFECTS.get(instruction.name) or _effect(instruction, jump=jump)
    if taken > len(stack):
        raise ValueError(f"{instruction!r} takes {taken} of {len(stack)} values on the stack")
    kept = stack[: len(stack) - taken]
    return (*kept, *(frozenset({(index, k)}) for k in range(pushed)))


def greatest_depth(code: Bytecode) -> int:
    """Return the greatest depth of the stack on any path."""
    return max((len(stack) for stack in stacks_before(code) if stack is not None), default=0)
