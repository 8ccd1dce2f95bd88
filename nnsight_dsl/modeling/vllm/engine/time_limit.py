"""The time limit of a program between two requests for a value.

The engine runs a program between two operations of the model, so an endless loop in it would stop
all requests. A watchdog thread raises `OutOfTime` in the engine's thread when the limit is
exceeded, and the program ends as with any other error.

    limit = Limit(60.0)
    with limit:                # each call into a program
        driver.offer(...)

CPython raises such an exception between two bytecode instructions, so a call into C that never
returns cannot be ended.
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
    """Raised asynchronously in a program. A BaseException, so that `except Exception` lets it pass.

    It is pickled as an `EngineError`, which is the error that the client raises.
    """

    def __str__(self) -> str:
        return (
            "a block ran on without asking for a value until its time was over; end its loop, or "
            "give it more time with VLLM(..., block_seconds=...)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineError, (str(self),)


_TICK = 0.25
"""Longest time between two checks of the clock, in seconds."""
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Limit:
    """A time limit, as a reentrant context manager for one thread at a time.

    The watchdog polls the clock, and goes to sleep after a poll that finds no new entry. Waking it
    at each entry would cost more than the program inside, since both threads compete for the GIL.
    So a program may exceed the limit by up to the time between two polls.

    Attributes:
        seconds: the limit, from the outermost entry.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # guards `_until`, `_thread`, `_entries` and `_is_asleep`, which the watchdog reads
        self._lock = threading.Lock()
        self._wake = threading.Event()
        # True while the watchdog waits for `_wake`; it sets this, and an entry clears it
        self._is_asleep = True
        # when the time is over; None outside of an entry, and while paused
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
        """Stop the clock: an exception between two collectives would leave other ranks waiting."""
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
                        # a new deadline, in case the block catches the exception
                        self._until = time.monotonic() + self.seconds
                        _raise_in(ctypes.c_ulong(self._thread), ctypes.py_object(OutOfTime))
                elif seen == self._entries:
                    # no entry since the last check
                    self._is_asleep = True
                    self._wake.clear()
                    continue
                seen = self._entries
            time.sleep(min(max(left, 0.01), _TICK))
