"""Reading and binding the names of a live frame.

The block of a plain script starts from the values of the names around it, and its results are
bound in the user's frame when the run is over. CPython has a read-only interface for the first
(`frame.f_locals`) and none for the second before 3.13, so this module deals with the differences:

- before PEP 667 (CPython 3.13) `f_locals` of a function is a snapshot, which has to be written
  back with `PyFrame_LocalsToFast`; writing it back also overwrites names that other threads have
  bound since, and the snapshot keeps values alive after the user deletes the names;
- from 3.12 on (PEP 709) comprehensions are inlined, so their variables are among the fast locals
  of the frame around them, and 3.12 binds them by mistake when a trace function is called.

    set_names(frame, {"hidden": tensor})        # as if the frame had run `hidden = tensor`
"""

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

# From CPython 3.12 on a comprehension runs in the frame around it (PEP 709), and its variables are
# fast locals of that frame, even of a module's frame. Each begins with this instruction.
_INLINED = dis.opmap.get("LOAD_FAST_AND_CLEAR")

# Whenever a trace function is called in a module or a class body, CPython 3.12 binds these
# variables from the namespace. While one of them is bound, `f_locals` is a copy.
_BINDS_HIDDEN = sys.version_info[:2] == (3, 12)

_found: dict[int, tuple[CodeType, frozenset[str]]] = {}
"""Cache of `local_names`, by identity of the code object; the entry keeps the code object alive."""


def _has_inlined(code: CodeType) -> bool:
    return _INLINED is not None and _INLINED in code.co_code[::2]


def local_names(code: CodeType) -> frozenset[str]:
    """Return the local and the free names of a function; none for a module or a class body."""
    if not code.co_flags & CO_OPTIMIZED:
        return frozenset()
    names = frozenset((*code.co_varnames, *code.co_cellvars, *code.co_freevars))
    if not _has_inlined(code):
        return names
    # the variable of an inlined comprehension may have the name of a global that the function uses
    return names - {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname.endswith("_GLOBAL")
    }


def local_names_of_entered(code: CodeType) -> frozenset[str]:
    """Return `local_names` from a cache, for functions with blocks, which may be entered often."""
    found = _found.get(id(code))
    if found is None:
        found = _found[id(code)] = (code, local_names(code))
    return found[1]


# Before PEP 667 (CPython 3.13) `f_locals` is a snapshot; this function writes it back to the frame.
_write_back: Any = None
if sys.version_info < (3, 13):
    _write_back = ctypes.pythonapi.PyFrame_LocalsToFast
    _write_back.argtypes = [ctypes.py_object, ctypes.c_int]
    _write_back.restype = None


def namespace_of(frame: FrameType) -> Any:
    """Return the mapping of a frame's names: the namespace itself, or `f_locals` for a function."""
    code = frame.f_code
    if not _BINDS_HIDDEN or code.co_flags & CO_OPTIMIZED or not _has_inlined(code):
        return frame.f_locals
    # In CPython 3.12 the header of a frame object is followed by `f_back` and the pointer to the
    # interpreter frame, in which `f_globals` and `f_locals` are the fourth and the sixth pointer.
    # The check of `f_globals` guards against another layout.
    word = ctypes.sizeof(ctypes.c_void_p)
    inner = ctypes.c_void_p.from_address(id(frame) + object.__basicsize__ + word).value
    if inner is None or ctypes.c_void_p.from_address(inner + 3 * word).value != id(frame.f_globals):
        raise InternalError("the frame is not laid out as in CPython 3.12")
    return ctypes.py_object.from_address(inner + 5 * word).value


def unbind_hidden(frame: FrameType) -> None:
    """Undo the bindings that CPython 3.12 makes when a trace function is called in a frame.

    Otherwise the user's `locals()` and `exec("name = 1")` would work on a copy of the namespace.
    The steps run without Python code in between, so no other thread finds a name missing.
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
    """Return the names visible in a frame with their values, free variables included.

    The namespace of a class body lacks the names of an enclosing function; they are taken from the
    frame of that function, which is the caller of the class body.
    """
    code, outer = frame.f_code, frame.f_back
    if code.co_flags & CO_OPTIMIZED or not code.co_freevars or outer is None:
        names = namespace_of(frame)
        # from PEP 667 (CPython 3.13) on it is a live view of the frame, so it is copied
        return names if type(names) is dict else {**names}
    enclosing = outer.f_locals
    free = {name: enclosing[name] for name in code.co_freevars if name in enclosing}
    return {**free, **namespace_of(frame)}


def forget_snapshot(frame: FrameType) -> None:
    """Clear the snapshot that reading `f_locals` has left in a frame.

    Before PEP 667 (CPython 3.13) the snapshot stays with the frame, and keeps alive the values of
    names that the user deletes afterwards. It is not cleared if other code holds a reference to it.
    """
    if sys.version_info < (3, 13) and frame.f_code.co_flags & CO_OPTIMIZED:
        snapshot = frame.f_locals
        # three references: the frame's, the local name's and the argument of getrefcount
        if sys.getrefcount(snapshot) <= 3:
            snapshot.clear()


def set_names(frame: FrameType, values: Mapping[str, Any]) -> None:
    """Bind names in a live frame as if its code had assigned them; leave other names alone."""
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
            # the function declares the name global
            frame.f_globals[name] = value
    if not local:
        return
    if _write_back is None:
        frame.f_locals.update(local)
    else:
        _write_alone(frame, local)


def _write_alone(frame: FrameType, values: dict[str, Any]) -> None:
    """Bind local names of a function through the snapshot of its frame, before CPython 3.13.

    `PyFrame_LocalsToFast` writes back the whole snapshot, and so would undo a binding that another
    thread has made since it was taken. So the snapshot is reduced to the given names for the time
    of the call.
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
    # Call the steps from C code, without returning to the eval loop, where the GIL may be released.
    call: Any = operator.call
    deque(map(call, steps), maxlen=0)
