"""Tracebacks that show the user's frames.

An exception of a block comes up through the machine, the driver, a tap and the whole forward of
the model. The user wrote none of that. What is kept is the chain from the block's own frame on,
without our frames in it; the model's frames are kept when the model raised.
"""

from __future__ import annotations

from pathlib import Path
from types import CodeType, TracebackType

_ROOTS = tuple(
    str(root)
    for folder in (Path(__file__).parent, Path(__file__).resolve().parent)
    for root in (folder, folder.parent / "transforms", folder.parent / "nnsight_dsl")
)


_show_all = False


def show_all_frames(show: bool) -> None:
    """Keep the frames of this package in tracebacks, or take them off again."""
    global _show_all
    _show_all = show


def is_ours(code: CodeType) -> bool:
    """Tell whether a code object belongs to this package."""
    return code.co_filename.startswith(_ROOTS)


def users_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package."""
    kept: list[TracebackType] = []
    while traceback is not None:
        if not is_ours(traceback.tb_frame.f_code):
            kept.append(traceback)
        traceback = traceback.tb_next
    result: TracebackType | None = None
    for entry in reversed(kept):
        result = TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result


def clean(error: BaseException) -> None:
    """Take our frames off an exception, off its cause and off its context."""
    if _show_all:
        return
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = users_traceback(current.__traceback__)
        todo += [current.__cause__, current.__context__]


def traceback_at(filename: str, line: int, function: str) -> TracebackType | None:
    """Make a traceback whose only entry is a line of the user's file."""
    code = compile("\n" * (line - 1) + "raise ValueError", filename, "exec")
    code = code.replace(co_name=function, co_qualname=function)
    try:
        exec(code, {})
    except ValueError as error:
        return users_traceback(error.__traceback__)
    return None
