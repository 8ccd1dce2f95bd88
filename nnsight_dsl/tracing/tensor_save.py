"""The one patch: `.save()` on tensors, for code that was not lowered.

In a block, `.save()` is recognised in the text. A helper in another file is run unchanged, and
there a tensor needs the method. For the length of a run whose blocks may call helpers,
`torch.Tensor.save` is defined; it is removed afterwards. Built-in types are left alone: in a
helper, `nnsight_dsl.save(x)` saves any object, and the error of `[].save()` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from nnsight_dsl.tracing.saving import save

_lock = Lock()
_users: set[object] = set()


def mount(user: object) -> None:
    """Let tensors have a `save` method while a run lasts, until `unmount`."""
    with _lock:
        _users.add(user)
        torch.Tensor.save = save


def unmount(user: object) -> None:
    """Undo `mount` for a run; without a `mount`, or a second time, this has no effect."""
    with _lock:
        if "save" in vars(torch.Tensor) and _users <= {user}:
            del torch.Tensor.save
        _users.discard(user)


@contextmanager
def tensor_save() -> Iterator[None]:
    """Let tensors have a `save` method while a run lasts."""
    user = object()
    try:
        mount(user)
        yield
    finally:
        unmount(user)


def explain_helpers(error: BaseException) -> None:
    """Add the fix to an error that occurs only in a helper, where nothing is lowered."""
    if isinstance(error, TypeError) and "does not support item assignment" in str(error):
        error.add_note(
            "an element of a tuple is replaced by 'm.output[0] = x' in the block itself; in a "
            "function that a block calls, replace the tuple: m.output = (x, *m.output[1:])"
        )
    if isinstance(error, RuntimeError) and "through the graph a second time" in str(error):
        error.add_note(
            "the blocks of one batch share one graph: call backward(retain_graph=True) in every "
            "pass but the last, or write 'with loss.backward():', which keeps it for other invokes"
        )
    if isinstance(error, AttributeError) and error.name == "save":
        error.add_note(
            "in a function that a block calls, write nnsight_dsl.save(x); x.save() works on any "
            "object in the block itself"
        )
