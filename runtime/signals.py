"""Signals are deferred while torch computes on fake tensors, until Python code of a model runs.

On fake tensors torch's operations are Python functions called by C++, and from some of them
(looking up an operation's rule, asking for a tensor's sizes) C++ cannot propagate an exception: a
Ctrl-C or a time limit there ends the whole process ("terminate called after throwing an instance
of 'python_error'"). So during such a run each Python signal handler is wrapped. If the stack of
the main thread goes through torch, the wrapper keeps the signal, and a profile function checks
the stack at each call and return until it no longer does. At the end of the run a kept signal is
delivered in any case.
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
"""Names of user-defined methods that C and C++ call."""


class WaitingSignals:
    """Defers signals that arrive inside of torch, until `hand_on`."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[..., Any]] = {}
        self._is_watching = False

    def begin(self, record: Record) -> None:
        """Wrap all Python signal handlers until the record is undone."""
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
        """Keep a signal that arrived inside of torch."""
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
        """Call the handlers of the signals that were kept."""
        self._stop_watching()
        while self._waiting:
            number, handler = self._waiting.popitem()
            handler(number, frame)


class _Waiting:
    """A signal handler that may defer the one it wraps."""

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
    # a handler that was installed meanwhile stays
    if signal.getsignal(number) is waiting:
        signal.signal(number, waiting.handler)


def is_inside_torch(frame: FrameType | None) -> bool:
    """Return whether C++ code of torch may have called a frame, directly or through other frames.

    Callbacks of weak references count too: they run when torch frees a tensor, and Python drops
    exceptions raised in them.
    """
    while frame is not None and frame.f_code not in _beginnings:
        code = frame.f_code
        if code.co_name in _CALLED_BY_C or _is_called_by_c(code.co_filename):
            return True
        frame = frame.f_back
    return False


_beginnings: set[CodeType] = set()


def begins_fake_run(function: Any) -> Any:
    """Mark the function at which a run on fake tensors begins; its callers do not count."""
    _beginnings.add(function.__code__)
    return function


@lru_cache(4096)
def _is_called_by_c(file: str) -> bool:
    is_torchs = file.startswith(_TORCH) and not file.startswith(_CALLED_BY_PYTHON)
    return is_torchs or file in _OF_WEAK_REFERENCES
