"""How the user's code makes a call: what opens a block, and what its line says.

`model.pipe(...)` runs at once unless it opens a block, and so does `model.generate(...)` in
nnsight 0.8. The instruction that follows the call decides which it is.
"""

from __future__ import annotations

import dis
import linecache
import sys
from types import CodeType, FrameType

from nnsight_dsl.runtime.tracebacks import is_ours
from nnsight_dsl.transforms.same_code import is_entry

_LOWERED_BLOCK = "_nns_block"
"""Name that lowering gives to the value that opens a block."""
_RETURNS = ("RETURN_VALUE",)
_JUMPS = ("JUMP_FORWARD",)
_IDLE = ("CACHE", "EXTENDED_ARG", "NOP", "RESUME")

_known: dict[tuple[int, int], tuple[CodeType, bool | None]] = {}
"""By code object, which the entry keeps alive, and instruction: the answer for a call."""


def opens_block() -> bool:
    """Return whether the value of the user's call under way opens a block.

    A function that returns the value is looked through. Where a call comes from code that has no
    Python frame, or from this package, it is taken for one that does.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_ours(frame.f_code):
        frame = frame.f_back
    while frame is not None and not is_ours(frame.f_code):
        found = _opens_at(frame.f_code, frame.f_lasti)
        if found is not None:
            return found
        frame = frame.f_back
    return True


def line_of_user() -> str:
    """Return the line of the user's code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_ours(frame.f_code):
        frame = frame.f_back
    if frame is None:
        return ""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def _opens_at(code: CodeType, offset: int) -> bool | None:
    """Return whether a call's value opens a block; None if its function returns the value."""
    key = (id(code), offset)
    if key not in _known:
        _known[key] = code, _look(code, offset)
    return _known[key][1]


def _look(code: CodeType, offset: int) -> bool | None:
    instructions = {one.offset: one for one in dis.get_instructions(code)}
    at = offset + 2
    while at < len(code.co_code):
        one = instructions.get(at)
        if one is None or one.opname in _IDLE:
            at += 2
        elif one.opname in _JUMPS:
            at = one.argval
        elif one.opname in _RETURNS:
            return None
        else:
            is_lowered = one.opname.startswith("STORE_") and one.argval == _LOWERED_BLOCK
            return is_lowered or is_entry(code, at)
    return False
