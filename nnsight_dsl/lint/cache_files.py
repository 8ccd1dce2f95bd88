"""The linter's cache on disk: the folder, by the conventions of the platform, and atomic writes."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache folder for this package; it may not exist yet."""
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
    """Write a file atomically: another process sees the old content or the new one.

    If the file cannot be written, nothing happens, since it is a cache.
    """
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
