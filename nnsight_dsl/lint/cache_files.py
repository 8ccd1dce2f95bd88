"""Folders of the user's machine in which the linter keeps what it has found out."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be found out again."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "nnsight_dsl"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "nnsight_dsl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nnsight_dsl"
    return Path.home() / ".cache" / "nnsight_dsl"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody sees half of it; where nothing can be written, nothing is."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, path)
        except OSError:
            with suppress(OSError):
                os.unlink(name)
            raise
