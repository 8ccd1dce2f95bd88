"""The record of a run: what has been changed for its length, and how it is put back.

Python lets an interrupt in nearly anywhere: when a function is entered, after a call, on the way
back in a loop. A `finally` alone does not hold against that, since it may itself be interrupted,
or the change be made and the `try` not reached. So whatever a run changes outside of itself (a
class, an attribute of a module, a switch of torch, a lock) follows three rules.

1. It is entered in the record before it is made.
2. Its undoing does nothing where the change has not been made, or has been undone.
3. An entry leaves the record only when it is undone, so that whoever is next goes on from there:
   the `finally` further out, or the next run (see `turns.py`).

    depth = len(record)
    record.append((restore, module, before))
    module.__dict__["forward"] = wrapped
    try:
        ...
    finally:
        record.undo(depth)

`undo` is a Python function, and an interrupt can come as it is entered. The outermost `finally`
therefore calls it a second time where the first has been interrupted.
"""

from __future__ import annotations

from typing import Any

from .errors import LoopOver, RunAborted, RunEnded


class Record(list[tuple[Any, ...]]):
    """Changes in the order in which they were made: a function that undoes each, and arguments."""

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
    """Give an item of a dictionary the value that it had, of `item_before`."""
    if before is _MISSING:
        namespace.pop(name, None)
    else:
        namespace[name] = before


def item_before(namespace: dict[str, Any], name: str) -> Any:
    """Return what `restore_item` needs to put an item of a dictionary back."""
    return namespace.get(name, _MISSING)


def is_interrupt(error: BaseException | None) -> bool:
    """Tell whether an exception came from outside of what ran: Ctrl-C, a time limit, an exit.

    Such an exception answers no question, and is never swallowed.
    """
    return not (error is None or isinstance(error, (Exception, LoopOver, RunAborted, RunEnded)))
