"""The record of a run: its changes outside of itself, and how to undo each.

An interrupt can arrive nearly anywhere in Python code: on entering a function, after a call, at
the end of a loop's round. A `finally` alone is not enough: it may be interrupted too, or the
change may be made and the `try` not yet entered. So every change that a run makes outside of
itself (a class, an attribute of a module, a switch of torch, a lock) follows three rules.

1. It is entered in the record before it is made.
2. Its undo does nothing if the change was not made, or was already undone.
3. An entry leaves the record only once it is undone, so that the next cleanup continues from
   there: the outer `finally`, or the next run (see `turns.py`).

    depth = len(record)
    record.append((restore, module, before))
    module.__dict__["forward"] = wrapped
    try:
        ...
    finally:
        record.undo(depth)

`undo` is a Python function, and an interrupt can arrive as it is entered. The outermost `finally`
therefore calls it again if the first call was interrupted.
"""

from __future__ import annotations

from typing import Any

from .errors import LoopOver, RunAborted, RunEnded


class Record(list[tuple[Any, ...]]):
    """Changes in order; each entry is the function that undoes one, and its arguments."""

    __slots__ = ()

    def undo(self, depth: int = 0) -> None:
        """Undo all changes but the first few, the last one first.

        Raises:
            Exception: one of them could not be undone; all others have been.
        """
        failure: Exception | None = None
        while len(self) > depth:
            function, *args = self[-1]
            try:
                function(*args)
            except Exception as error:
                failure = failure or error
            self.pop()
        if failure is not None:
            raise failure


_MISSING = object()


def restore_item(namespace: dict[str, Any], name: str, before: Any) -> None:
    """Restore an item of a dictionary to the value that `item_before` returned."""
    if before is _MISSING:
        namespace.pop(name, None)
    else:
        namespace[name] = before


def item_before(namespace: dict[str, Any], name: str) -> Any:
    """Return the value of an item for `restore_item`, a marker if it is missing."""
    return namespace.get(name, _MISSING)


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception came from outside of the code that ran: Ctrl-C, a time limit.

    Such an exception says nothing about that code, and is never swallowed.
    """
    return not (error is None or isinstance(error, (Exception, LoopOver, RunAborted, RunEnded)))
