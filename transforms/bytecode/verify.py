"""Static checks of instrumented code, for tests.

Faulty bytecode crashes the interpreter instead of raising, so the tests call `faults_in` on the
tapped code of whole libraries before any of it runs.
"""

from __future__ import annotations

import dis
from types import CodeType

from bytecode import Bytecode, Instr

from .stack import greatest_depth


def faults_in(tapped: CodeType, original: CodeType) -> list[str]:
    """Return descriptions of the faults in tapped code, an empty list if it is sound.

    Checked are: the stack depth on every path against the code object's `co_stacksize`; that
    Python's disassembler reads the code; that it goes through the original lines in order, and has
    no positions that the original lacks; that flags, variables and inner functions are the same.
    """
    found: list[str] = []
    entries = Bytecode.from_code(tapped, conserve_exception_block_stackdepth=True)
    try:
        depth = greatest_depth(entries)
    except ValueError as error:
        found.append(str(error))
    else:
        if depth > tapped.co_stacksize:
            found.append(f"{depth} values lie on a stack of {tapped.co_stacksize}")
    list(dis.get_instructions(tapped))
    before = Bytecode.from_code(original, conserve_exception_block_stackdepth=True)
    known = {entry.location for entry in before if isinstance(entry, Instr)}
    new = {entry.location for entry in entries if isinstance(entry, Instr)} - known
    if new:
        found.append(f"positions that the original does not have: {new}")
    if tapped.co_flags != original.co_flags:
        found.append(f"flags {tapped.co_flags:#x} instead of {original.co_flags:#x}")
    if _lines(tapped) != _lines(original):
        found.append("the lines are not those of the original, in order")
    for name in ("co_varnames", "co_cellvars", "co_freevars", "co_argcount", "co_firstlineno"):
        if getattr(tapped, name) != getattr(original, name):
            found.append(f"{name} differs")
    inner, inner_before = _codes_loaded(entries), _codes_loaded(before)
    if [code.co_name for code in inner] != [code.co_name for code in inner_before]:
        found.append("the functions inside are not those of the original")
    else:
        for one, other in zip(inner, inner_before, strict=True):
            found.extend(faults_in(one, other))
    return found


def _codes_loaded(entries: Bytecode) -> list[CodeType]:
    """Return the code objects of inner functions, from the instructions that load them.

    `co_consts` may also hold those of dead code that the compiler has removed.
    """
    loaded = [entry.arg for entry in entries if isinstance(entry, Instr)]
    return [arg for arg in loaded if isinstance(arg, CodeType)]


def _lines(code: CodeType) -> list[int | None]:
    """Return the lines that the code goes through, without immediate repetitions."""
    lines: list[int | None] = []
    for _, _, line in code.co_lines():
        if not lines or lines[-1] != line:
            lines.append(line)
    return lines
