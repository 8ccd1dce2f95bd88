"""How long a program may go on without asking for a value.

The engine runs a program between two of the model's operations, so a loop without end would stop
all requests. One thread watches the clock, and raises in the engine's thread when it has run out;
that ends the program, as any other error of its own does. It ends what Python runs: a single call
into a library that never returns cannot be ended.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnsight_dsl.runtime.errors import EngineError


class OutOfTime(BaseException):
    """Raised out of nowhere, and past `except Exception`; at the client it is an EngineError."""

    def __str__(self) -> str:
        return (
            "a block ran on without asking for a value until its time was over; end its loop, or "
            "give it more time with VLLM(..., block_seconds=...)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineError, (str(self),)


_TICK = 0.25
"""Longest time between two looks, in seconds."""
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Limit:
    """A limit of time, as a context manager; it may be entered again inside.

    The thread that watches looks from time to time, as long as there is something to watch. To wake
    it at each entry would cost more than what is done inside: both threads want the interpreter.

    Attributes:
        seconds: how long the inside may last.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_asleep = True
        self._until: float | None = None
        self._thread = 0
        self._depth = 0
        self._entries = 0
        self._watch: threading.Thread | None = None

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        if self._watch is None:
            self._watch = threading.Thread(target=self._run, daemon=True, name="nnsight_dsl limit")
            self._watch.start()
        with self._lock:
            self._thread = threading.get_ident()
            self._until = time.monotonic() + self.seconds
            self._entries += 1
            if self._is_asleep:
                self._is_asleep = False
                self._wake.set()

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            with self._lock:
                self._until = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let nothing be raised meanwhile; other workers take part in what is done."""
        with self._lock:
            until, self._until = self._until, None
        begun = time.monotonic()
        try:
            yield
        finally:
            if until is not None:
                with self._lock:
                    self._until = until + time.monotonic() - begun

    def _run(self) -> None:
        seen = -1
        while True:
            self._wake.wait()
            left = _TICK
            with self._lock:
                if self._until is not None:
                    left = self._until - time.monotonic()
                    if left <= 0:
                        # once more, should the block swallow it
                        self._until = time.monotonic() + self.seconds
                        _raise_in(ctypes.c_ulong(self._thread), ctypes.py_object(OutOfTime))
                elif seen == self._entries:
                    # nothing has been entered since the last look
                    self._is_asleep = True
                    self._wake.clear()
                    continue
                seen = self._entries
            time.sleep(min(max(left, 0.01), _TICK))
