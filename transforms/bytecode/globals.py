"""Which global names some code reads, functions and comprehensions inside it included."""

from __future__ import annotations

import dis
from functools import lru_cache
from types import CodeType


@lru_cache(maxsize=1024)
def global_names(code: CodeType) -> frozenset[str]:
    """Return the names that a code object looks up among the globals, builtins too."""
    found = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= global_names(constant)
    return frozenset(found)
