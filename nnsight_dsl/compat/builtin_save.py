"""A `save` method for objects of built-in types, and for tensors outside of runs.

In a block, `x.save()` is recognised in the text. Programs written for nnsight also call it in
functions that no one lowers, on a list or a number. So these types get the method while
`compat` is installed. Outside of a run it is an error, in programs for 0.6 it has no effect.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

_BUILTINS = (list, dict, tuple, set, frozenset, int, float, bool, str, bytes, slice)

_OWNER = "nnsight_dsl.compat"
"""Who has put the method on tensors, beside the runs that do."""


def mount(dialect: str) -> None:
    """Give the types their method."""
    if dialect == "0.6":
        method = _saved_or_not
    else:
        method = _saved
    for cls in _BUILTINS:
        _namespace_of(cls)["save"] = method
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


def mount_on_tensors() -> None:
    """Give tensors their method for as long as `compat` is installed, outside of runs, too."""
    from nnsight_dsl.tracing import tensor_save

    if "save" in _namespace_of(list):
        tensor_save.mount(_OWNER)


def unmount() -> None:
    """Take it from them; without a `mount` this has no effect."""
    for cls in _BUILTINS:
        _namespace_of(cls).pop("save", None)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))
    tensors = sys.modules.get("nnsight_dsl.tracing.tensor_save")
    if tensors is not None:
        tensors.unmount(_OWNER)


def _saved(self: Any) -> Any:
    # imported late, because it imports torch
    from nnsight_dsl.tracing.saving import save

    return save(self)


def _saved_or_not(self: Any) -> Any:
    from nnsight_dsl.compat.as_06 import save

    return save(self)


def _namespace_of(cls: type) -> dict[str, Any]:
    """Return the dictionary behind a built-in type's read-only view of it."""
    namespace: dict[str, Any] = gc.get_referents(cls.__dict__)[0]
    return namespace
