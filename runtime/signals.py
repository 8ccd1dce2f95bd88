"""Signals that come while torch computes on fake tensors wait until Python code of a model runs.

On fake tensors the operations of torch are Python functions that C++ calls, and from some of them
(the search for an operation's rule, the question for a tensor's sizes) it cannot hand an exception
on: a Ctrl-C or a time limit in there ends the whole process ("terminate called after throwing an
instance of 'python_error'"). So for the length of such a run each handler of a signal that is
written in Python stands behind one that waits: where the stack of the main thread goes through
torch, the signal is kept, and each call and return from then on is looked at until it does not.
At the end of the run it is handed on in any case.
"""

from __future__ import annotations

import _weakrefset
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import torch

from .record import Record

_TORCH = os.path.dirname(torch.__file__) + os.sep
_CALLED_BY_PYTHON = tuple(
    _TORCH + name.replace("/", os.sep)
    for name in ("nn/modules/", "utils/checkpoint.py", "utils/_contextlib.py")
)
"""Parts of torch whose functions C++ does not call, as of torch 2.13."""

_OF_WEAK_REFERENCES = (weakref.__file__, _weakrefset.__file__)
_CALLED_BY_C = ("__torch_dispatch__", "__del__")
"""Functions of the user's that C and C++ call."""


class WaitingSignals:
    """Keeps signals from being handled inside of torch, until `hand_on`."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[..., Any]] = {}
        self._is_watching = False

    def begin(self, record: Record) -> None:
        """Stand before all handlers of signals, until the record is undone."""
        if threading.current_thread() is not threading.main_thread():
            # signals are handled in the main thread only
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, _Waiting):
                waiting = _Waiting(self, handler)
                record.append((_restore, number, waiting))
                signal.signal(number, waiting)

    def keep(self, number: int, handler: Callable[..., Any]) -> None:
        """Keep a signal that came inside of torch."""
        self._waiting[number] = handler
        if not self._is_watching and sys.getprofile() is None:
            self._is_watching = True
            sys.setprofile(self._watch)

    def _watch(self, frame: FrameType, event: str, arg: object) -> None:
        if self._waiting and is_inside_torch(frame):
            return
        self._stop_watching()
        self.hand_on(frame)

    def _stop_watching(self) -> None:
        if self._is_watching:
            self._is_watching = False
            sys.setprofile(None)

    def hand_on(self, frame: FrameType | None) -> None:
        """Call the handlers of the signals that wait."""
        self._stop_watching()
        while self._waiting:
            number, handler = self._waiting.popitem()
            handler(number, frame)


class _Waiting:
    """What stands before the handler of a signal."""

    __slots__ = ("_signals", "handler")

    def __init__(self, signals: WaitingSignals, handler: Callable[..., Any]) -> None:
        self._signals = signals
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        if frame is not None and is_inside_torch(frame):
            self._signals.keep(number, self.handler)
            return None
        return self.handler(number, frame)


def _restore(number: int, waiting: _Waiting) -> None:
    # another one that was put there meanwhile stays
    if signal.getsignal(number) is waiting:
        signal.signal(number, waiting.handler)


def is_inside_torch(frame: FrameType | None) -> bool:
    """Tell whether a frame may have been called by C++ code of torch, however many frames away.

    So are callbacks of weak references, which run when torch frees a tensor; Python loses what is
    raised in them.
    """
    while frame is not None and frame.f_code not in _beginnings:
        code = frame.f_code
        if code.co_name in _CALLED_BY_C or _is_called_by_c(code.co_filename):
            return True
        frame = frame.f_back
    return False


_beginnings: set[CodeType] = set()


def begins_fake_run(function: Any) -> Any:
    """Mark the function that a run on fake tensors begins with; what calls it does not count."""
    _beginnings.add(function.__code__)
    return function


@lru_cache(4096)
def _is_called_by_c(file: str) -> bool:
    is_torchs = file.startswith(_TORCH) and not file.startswith(_CALLED_BY_PYTHON)
    return is_torchs or file in _OF_WEAK_REFERENCES
