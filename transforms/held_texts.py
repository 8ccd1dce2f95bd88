"""Texts of the user's modules, held from early on.

A file may be edited while the program that was started from it runs, and a block's text is looked
for when the block is first entered. So the texts that were on disk when this package was
imported, and when a model was wrapped, are kept: of modules that hold blocks, outside of Python's
own folders. What is kept is only a candidate, and compared with the running code like any other.
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
_seen: set[str] = set()
_count = 0


def hold_texts() -> None:
    """Keep the texts of the modules that have been imported since the last call."""
    global _count
    if len(sys.modules) == _count:
        return
    modules = list(sys.modules.values())
    _count = len(modules)
    for module in modules:
        # not by an attribute, which a lazy module would import something for
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(file, str) and file not in _seen:
            _seen.add(file)
            if _is_users(file):
                _hold(file)


def held_texts(filename: str) -> list[bytes]:
    """Return the texts of a file that are held."""
    return _held.get(os.path.abspath(filename), [])


def hold(filename: str, text: bytes) -> None:
    """Keep a text of a file, that which its code was compiled from."""
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
