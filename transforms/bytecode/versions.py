"""Differences between the bytecodes of CPython 3.11, 3.12 and 3.13.

The other modules of this package contain no test of the version. Two differences matter most:

- At a call the stack is `NULL, callable, arguments` up to 3.12, and `callable, NULL, arguments`
  from 3.13 on.
- A method load pushes two values whose meaning is known at run time only: an unbound method and
  its object, or NULL and another callable. It is `LOAD_METHOD` in 3.11, and a bit of `LOAD_ATTR`
  from 3.12 on. `plain_attribute` converts it to the load of an attribute, so that all tapped calls
  have the same stack layout.

Generated instructions are pairs of a name and an argument, `UNSET` if there is none:

    [("SWAP", 2), ("PUSH_NULL", UNSET), ("CALL", 0)]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

from bytecode import Compare, Instr
from bytecode.instr import UNSET

Pair: TypeAlias = tuple[str, Any]

NULL_IS_FIRST = sys.version_info < (3, 13)
"""Whether the NULL of a call is pushed below the callable, rather than right above it."""

HAS_PRECALL = sys.version_info < (3, 12)
"""Whether `PRECALL` precedes each `CALL`; the library `bytecode` counts it as popping arguments."""

HAS_COMPARE_TO_BOOL = sys.version_info >= (3, 13)
"""Whether a bit of `COMPARE_OP` converts its result to a bool, for the jump after it."""


def argument(instruction: Instr) -> Any:
    """Return an instruction's argument, whose type depends on its name."""
    return instruction.arg


def call(count: int) -> list[Pair]:
    """Call with `count` positional arguments, which lie above callable and NULL."""
    return [*([("PRECALL", count)] if HAS_PRECALL else []), ("CALL", count)]


def through(function: object) -> list[Pair]:
    """Replace the value on the top of the stack by `function(value)`."""
    if NULL_IS_FIRST:
        return [("PUSH_NULL", UNSET), ("SWAP", 2), ("LOAD_CONST", function), ("SWAP", 2), *call(1)]
    return [("LOAD_CONST", function), ("SWAP", 2), ("PUSH_NULL", UNSET), ("SWAP", 2), *call(1)]


def through_called(function: object) -> list[Pair]:
    """Replace callable, NULL and the tuple of arguments above them by a function's result.

    The function is called with the callable and the tuple.
    """
    if NULL_IS_FIRST:
        return [("LOAD_CONST", function), ("SWAP", 3), ("SWAP", 2), *call(2)]
    return [("SWAP", 3), ("LOAD_CONST", function), ("SWAP", 4), *call(2)]


def called() -> list[Pair]:
    """Call the value on the top of the stack without arguments."""
    below: list[Pair] = [("PUSH_NULL", UNSET)]
    return [*below, *([("SWAP", 2)] if NULL_IS_FIRST else []), *call(0)]


def is_method_load(instruction: Instr) -> bool:
    """Return whether an instruction pushes a method and its object, or NULL and a callable."""
    name, arg = instruction.name, argument(instruction)
    if name == "LOAD_METHOD":
        return True
    # in 3.11 the argument of LOAD_ATTR is a name, and in LOAD_SUPER_ATTR a method is the first bit
    return name in ("LOAD_ATTR", "LOAD_SUPER_ATTR") and isinstance(arg, tuple) and bool(arg[0])


def plain_attribute(instruction: Instr) -> list[Pair]:
    """Load the attribute of a method load as a plain attribute, and push the NULL of the call."""
    null: list[Pair] = [("PUSH_NULL", UNSET), *([("SWAP", 2)] if NULL_IS_FIRST else [])]
    arg = argument(instruction)
    if instruction.name == "LOAD_METHOD":
        return [("LOAD_ATTR", arg), *null]
    if isinstance(arg, tuple):
        return [(instruction.name, (False, *arg[1:])), *null]
    raise TypeError(f"{instruction!r} loads no method")


def name_loaded(instruction: Instr, position: int) -> str | None:
    """Return the name whose value an instruction pushes, None if it loads no name.

    Args:
        instruction: the instruction.
        position: number of the value among those that it pushes, 0 for the deepest.
    """
    name, arg = instruction.name, argument(instruction)
    if name == "LOAD_GLOBAL":
        return str(arg[1]) if isinstance(arg, tuple) else str(arg)
    if name == "LOAD_FAST_LOAD_FAST" and isinstance(arg, tuple):
        return _text(arg[position])
    if name == "STORE_FAST_LOAD_FAST" and isinstance(arg, tuple):
        return _text(arg[1])
    if name in ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_NAME", "LOAD_DEREF"):
        return _text(arg)
    return None


def attribute_loaded(instruction: Instr) -> str | None:
    """Return the name of the attribute that an instruction loads, None if it loads none."""
    name, arg = instruction.name, argument(instruction)
    if name not in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
        return None
    return str(arg[-1]) if isinstance(arg, tuple) else str(arg)


def names_stored(instruction: Instr) -> Sequence[str]:
    """Return the names of the locals that an instruction assigns, in the order of assignment."""
    name, arg = instruction.name, argument(instruction)
    if name == "STORE_FAST_STORE_FAST" and isinstance(arg, tuple):
        return [_text(one) for one in arg]
    if name == "STORE_FAST_LOAD_FAST" and isinstance(arg, tuple):
        return [_text(arg[0])]
    return [_text(arg)] if name in ("STORE_FAST", "STORE_DEREF") else []


def separate_stores(instruction: Instr) -> list[Pair]:
    """Split an instruction that stores to locals into instructions that store to one each."""
    name, arg = instruction.name, argument(instruction)
    if name == "STORE_FAST_STORE_FAST" and isinstance(arg, tuple):
        return [("STORE_FAST", arg[0]), ("STORE_FAST", arg[1])]
    if name == "STORE_FAST_LOAD_FAST" and isinstance(arg, tuple):
        return [("STORE_FAST", arg[0]), ("LOAD_FAST", arg[1])]
    return [(name, arg)]


def comparison(arg: Any) -> str:
    """Return the name of a comparison, `"lt"`."""
    return Compare(arg).name.removesuffix("_CAST").lower()


def separate_bool(instruction: Instr) -> tuple[list[Pair], list[Pair]]:
    """Split a comparison into itself and, if it also converts its result, a `TO_BOOL`."""
    name, arg = instruction.name, argument(instruction)
    if HAS_COMPARE_TO_BOOL and name == "COMPARE_OP" and Compare(arg).name.endswith("_CAST"):
        own = Compare[Compare(arg).name.removesuffix("_CAST")]
        return [(name, own)], [("TO_BOOL", UNSET)]
    return [(name, arg)], []


def _text(variable: Any) -> str:
    return str(getattr(variable, "name", variable))
