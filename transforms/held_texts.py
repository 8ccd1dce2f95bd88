"""Early copies of the source texts of the user's modules.

The text of a block is looked up when the block is first entered, which may be long after the
import of its module; if the file was edited in between, the text on disk no longer matches the
running code. So this module keeps the texts that are on disk when this package is imported and
when a model is wrapped. It reads the files of user modules that may contain blocks, and skips the
standard library, installed packages and this package.

A kept text is one candidate of several, and is compared with the running code like any other (see
`texts.py`). A file that was edited before its first copy was taken is not found here.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from .prefilter import may_hold_blocks

_PYTHONS_OWN = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS = tuple(
    path + os.sep
    for folder in (os.path.dirname(__file__), os.path.dirname(os.path.realpath(__file__)))
    for path in (folder, os.path.join(os.path.dirname(folder), "nnsight_dsl"))
)

_held: dict[str, list[bytes]] = {}
"""The kept texts of each file, by absolute path, oldest first and without duplicates."""
_seen: set[str] = set()
"""Files that `hold_texts` has looked at, so that each is read once."""
_count = 0
"""Length of `sys.modules` at the last call of `hold_texts`; equal means nothing to do."""


def hold_texts() -> None:
    """Read and keep the texts of the modules imported since the last call."""
    global _count
    if len(sys.modules) == _count:
        return
    modules = list(sys.modules.values())
    _count = len(modules)
    for module in modules:
        # not by `getattr`, which makes a lazy module import its contents
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(file, str) and file not in _seen:
            _seen.add(file)
            if _is_users(file):
                _hold(file)


def held_texts(filename: str) -> list[bytes]:
    """Return the kept texts of a file."""
    return _held.get(os.path.abspath(filename), [])


def hold(filename: str, text: bytes) -> None:
    """Keep one text of a file, as a candidate for later lookups."""
    held = _held.setdefault(os.path.abspath(filename), [])
    if text not in held:
        held.append(text)


def _is_users(file: str) -> bool:
    return (
        file.endswith(".py")
        and not file.startswith((_PYTHONS_OWN, *_OURS))
        and not any(folder in file for folder in _INSTALLED)
    )


def _hold(file: str) -> None:
    try:
        with open(file, "rb") as opened:
            text = opened.read()
    except OSError:
        return
    if may_hold_blocks(text):
        hold(file, text)
