"""The names of a live frame: which are its own, what they stand for, and how they are bound."""

from __future__ import annotations

import ctypes
import dis
import operator
import sys
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType
from typing import Any

from .errors import InternalError

# From CPython 3.12 on a comprehension runs in the frame around it (PEP 709), and its variables
# stand among the fast locals of that frame, of a module's frame too. This instruction begins one.
_INLINED = dis.opmap.get("LOAD_FAST_AND_CLEAR")

# CPython 3.12 binds such variables from the namespace of a module or of a class body whenever a
# trace function is called there. While one of them is bound, `f_locals` is a copy.
_BINDS_HIDDEN = sys.version_info[:2] == (3, 12)

_found: dict[int, tuple[CodeType, frozenset[str]]] = {}
"""By identity of the code object, which an entry keeps alive."""


def _has_inlined(code: CodeType) -> bool:
    return _INLINED is not None and _INLINED in code.co_code[::2]


def local_names(code: CodeType) -> frozenset[str]:
    """Return the names that are local in a function's scope, or free in it; a module has none."""
    if not code.co_flags & CO_OPTIMIZED:
        return frozenset()
    names = frozenset((*code.co_varnames, *code.co_cellvars, *code.co_freevars))
    if not _has_inlined(code):
        return names
    # a variable of a comprehension may have the name of a global that the function uses
    return names - {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname.endswith("_GLOBAL")
    }


def local_names_of_entered(code: CodeType) -> frozenset[str]:
    """Return the same, remembered: of a function with a block, which may be entered often."""
    found = _found.get(id(code))
    if found is None:
        found = _found[id(code)] = (code, local_names(code))
    return found[1]


# before PEP 667 (Python 3.13) `f_locals` is a copy, which this call writes back
_write_back: Any = None
if sys.version_info < (3, 13):
    _write_back = ctypes.pythonapi.PyFrame_LocalsToFast
    _write_back.argtypes = [ctypes.py_object, ctypes.c_int]
    _write_back.restype = None


def namespace_of(frame: FrameType) -> Any:
    """Return the mapping that a frame's own names stand in: of a function, that which it shows."""
    code = frame.f_code
    if not _BINDS_HIDDEN or code.co_flags & CO_OPTIMIZED or not _has_inlined(code):
        return frame.f_locals
    # behind the header of the frame object stand `f_back` and the interpreter's own frame, in which
    # `f_globals` and `f_locals` are the fourth and the sixth pointer
    word = ctypes.sizeof(ctypes.c_void_p)
    inner = ctypes.c_void_p.from_address(id(frame) + object.__basicsize__ + word).value
    if inner is None or ctypes.c_void_p.from_address(inner + 3 * word).value != id(frame.f_globals):
        raise InternalError("the frame is not laid out as in CPython 3.12")
    return ctypes.py_object.from_address(inner + 5 * word).value


def unbind_hidden(frame: FrameType) -> None:
    """Undo what a trace function has bound in the frame of a module or of a class body.

    Else `locals()` and `exec("name = 1")` of the user's would be given the copy. Nothing in Python
    runs between the steps, so no other thread finds a name missing.
    """
    code = frame.f_code
    if not _BINDS_HIDDEN or code.co_flags & CO_OPTIMIZED or not _has_inlined(code):
        return
    namespace = namespace_of(frame)
    if type(namespace) is dict:
        names = [name for name in (*code.co_varnames, *code.co_cellvars) if name in namespace]
        kept: dict[str, Any] = {}
        _at_once(
            partial(kept.update, zip(names, map(namespace.pop, names), strict=True)),
            partial(_write_back, frame, 1),
            partial(namespace.update, kept),
        )


def names_around(frame: FrameType) -> Mapping[str, Any]:
    """Return what the names of a frame stand for, those of an enclosing function too.

    In the frame of a class body the names that it has from an enclosing function are missing; they
    are found in the frame of that function, which is running the class body.
    """
    code, outer = frame.f_code, frame.f_back
    if code.co_flags & CO_OPTIMIZED or not code.co_freevars or outer is None:
        names = namespace_of(frame)
        # from PEP 667 (Python 3.13) on it is a view of the frame, which changes with it
        return names if type(names) is dict else {**names}
    enclosing = outer.f_locals
    free = {name: enclosing[name] for name in code.co_freevars if name in enclosing}
    return {**free, **namespace_of(frame)}


def forget_snapshot(frame: FrameType) -> None:
    """Let a frame forget the copy of its names that looking at them has made.

    Before PEP 667 (Python 3.13) the copy stays with the frame, and keeps the values of names that
    the user deletes afterwards. It is left alone where somebody else holds it, too.
    """
    if sys.version_info < (3, 13) and frame.f_code.co_flags & CO_OPTIMIZED:
        snapshot = frame.f_locals
        # the frame, the name above and the argument of getrefcount
        if sys.getrefcount(snapshot) <= 3:
            snapshot.clear()


def set_names(frame: FrameType, values: Mapping[str, Any]) -> None:
    """Bind names in a live frame, as if it had assigned them itself; no other name is touched."""
    if not values:
        return
    code = frame.f_code
    if not code.co_flags & CO_OPTIMIZED:
        namespace_of(frame).update(values)
        return
    known = local_names_of_entered(code)
    local: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            local[name] = value
        else:
            # a name declared global in the function is none of its locals
            frame.f_globals[name] = value
    if not local:
        return
    if _write_back is None:
        frame.f_locals.update(local)
    else:
        _write_alone(frame, local)


def _write_alone(frame: FrameType, values: dict[str, Any]) -> None:
    """Bind local names of a function through the copy that the frame has of them.

    What is written back is all that stands in the copy, also what another thread has bound anew
    since it was made. So for a moment nothing stands in it but the names to be written.
    """
    copy = frame.f_locals
    kept = {**copy, **values}
    _at_once(
        copy.clear,
        partial(copy.update, values),
        partial(_write_back, frame, 0),
        partial(copy.update, kept),
    )


def _at_once(*steps: Callable[[], Any]) -> None:
    # called from C, between which no other thread runs
    call: Any = operator.call
    deque(map(call, steps), maxlen=0)
