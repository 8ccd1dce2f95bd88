"""The fast path of torch's own transformer layers, which runs are kept off.

`torch.nn.TransformerEncoderLayer` and its like compute all in one call where no hook is registered,
so that the modules inside them are never called. For the length of a run that looks at such a
module they call them one by one, as hooks make them do. The switch is one for the process, and runs
of several models may overlap: it is put back when the last of them is over.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import nn

FAST_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""Modules that may compute all in one call."""

_lock = Lock()
_users: set[object] = set()
_was_on = False


def leave_fast_path(run: object) -> None:
    """Begin a run that is kept off the fast path; `return_to_fast_path` ends it."""
    global _was_on
    with _lock:
        if not _users:
            _was_on = torch.backends.mha.get_fastpath_enabled()
        _users.add(run)
        torch.backends.mha.set_fastpath_enabled(False)


def return_to_fast_path(run: object) -> None:
    """End a run that was kept off the fast path; for any other, do nothing."""
    with _lock:
        if run in _users and len(_users) == 1:
            torch.backends.mha.set_fastpath_enabled(_was_on)
        _users.discard(run)
