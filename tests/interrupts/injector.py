"""Raises KeyboardInterrupt at the n-th place of a run where Python may let a signal in.

CPython looks for signals when a function is entered or a generator resumed, after a call, and on
the way back in a loop (`RESUME`, `CALL` and `JUMP_BACKWARD`, as of 3.11 to 3.13), never between
two other instructions. A trace function counts these places in the frames that are of interest,
and raises at one of them. Where the instruction after a call lies under another handler than the
call, what is raised there would not go the way of a signal, and the place is left out.

A trace function that raises is taken away by CPython, with the instrumentation of the frames that
it sees on the stack. Frames of other greenlets it does not see, and 3.12 crashes in them if they
still ask for instructions to be traced: so none asks any more when the interrupt comes.
"""

from __future__ import annotations

import dis
import opcode
import signal
import sys
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{ROOT / folder}/" for folder in ("nnsight_dsl", "runtime", "transforms"))
_LETS_IN = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"}


def is_ours(code: CodeType) -> bool:
    """Tell whether a code object belongs to the package, lowered blocks not included."""
    return code.co_filename.startswith(_OURS)


def is_anywhere(code: CodeType) -> bool:
    """Accept all Python code but that of the tests themselves and of imports."""
    return "importlib" not in code.co_filename and not code.co_filename.endswith("injector.py")


@cache
def _handlers(code: CodeType) -> tuple[list[int], list[Any]]:
    starts, targets = [-1], [None]
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
        starts += [entry.start, entry.end]
        targets += [(entry.target, entry.depth), None]
    return starts, targets


def _handler(code: CodeType, offset: int) -> Any:
    starts, targets = _handlers(code)
    return targets[bisect_right(starts, offset) - 1]


@cache
def _names(code: CodeType) -> list[str]:
    text = code.co_code
    return [opcode.opname[text[offset]] for offset in range(0, len(text), 2)]


class Injector:
    """Counts places, and interrupts at one of them.

    What is raised in a callback of the collector, as that of a weak reference, is lost by Python
    itself, and so is a Ctrl-C there. Such an interrupt has not been.

    Attributes:
        count: places passed so far.
        where: file, line and function of the interrupt, None before it.
    """

    def __init__(self, at: int | None, is_counted: Callable[[CodeType], bool] = is_ours) -> None:
        self._at = at
        self._is_counted = cache(is_counted)
        self._traced: dict[int, FrameType] = {}  # frames that run, in all greenlets
        self.count = 0
        self.where: str | None = None

    def run(self, function: Callable[[], Any]) -> Any:
        """Call a function, to be interrupted on the way."""
        before, hook = sys.gettrace(), sys.unraisablehook

        def lost(unraisable: Any) -> None:
            if isinstance(unraisable.exc_value, KeyboardInterrupt):
                self.where = None
                self._at = None
            else:
                hook(unraisable)

        # a shell that starts a process in the background has it ignore Ctrl-C
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = lost
        sys.settrace(self._entered)
        try:
            return function()
        finally:
            sys.settrace(before)
            self._stop_tracing()
            sys.unraisablehook = hook
            signal.signal(signal.SIGINT, handler)

    def _entered(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if self.where is not None or not self._is_counted(code):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        self._traced[id(frame)] = frame
        names = _names(code)
        last = -1

        def at_instruction(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal last
            if event == "return":
                self._traced.pop(id(frame), None)
            if event != "opcode":
                return at_instruction
            now, before = frame.f_lasti, last
            last = now
            is_place = before < 0 or (
                names[before // 2] in _LETS_IN and _handler(code, before) == _handler(code, now)
            )
            if is_place and self.where is None:
                self.count += 1
                if self.count == self._at:
                    file = Path(code.co_filename).name
                    self.where = f"{file}:{frame.f_lineno} in {code.co_qualname}"
                    self._stop_tracing()
                    # as Python does when a Ctrl-C has come
                    handler: Any = signal.getsignal(signal.SIGINT)
                    handler(signal.SIGINT, frame)
            return at_instruction

        return at_instruction

    def _stop_tracing(self) -> None:
        for frame in self._traced.values():
            frame.f_trace_opcodes = False
        self._traced.clear()
