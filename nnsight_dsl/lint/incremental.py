"""Incremental linting of many files: unchanged files are served from a cache.

The cache key of a file's findings is the hash of its name and content. There is one cache file for
each combination of settings, models, rules and versions, so a change of any of these starts with
an empty cache. Uncached files are split between two processes if there is enough text to make up
for the start of a process.

    found, contents = lint_files(paths, settings)

A cache file that cannot be read counts as empty, and one that cannot be written is not written.
Two linters that run at the same time may overwrite each other's entries, which costs time only.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nnsight_dsl.version import __version__

from .cache_files import cache_folder, write_whole
from .diagnostics import Diagnostic, Insertion, in_order
from .engine import Structures, lint
from .settings import Settings

_WORTH_SHARING = 200_000
"""Bytes of uncached text from which on a second process is worth its start."""
_MOST_KEPT = 20_000
"""Number of files whose findings one cache file keeps; the oldest are dropped."""


def lint_files(
    paths: Sequence[Path],
    settings: Settings,
    structures: Structures | None = None,
    *,
    keeps: bool = True,
) -> tuple[list[Diagnostic], dict[str, bytes]]:
    """Lint files.

    Args:
        paths: the files.
        settings: which rules apply.
        structures: facts about models, None to lint from the text alone.
        keeps: True to read and write the cache in the user's cache folder.

    Returns:
        The diagnostics in order of position, and the content of each file by name.

    Raises:
        OSError: a file cannot be read.
    """
    contents = {str(path): path.read_bytes() for path in paths}
    kept = _Kept(settings, structures) if keeps else None
    found: list[Diagnostic] = []
    new: list[tuple[str, bytes]] = []
    for file, content in contents.items():
        known = kept.found(file, content) if kept is not None else None
        if known is None:
            new.append((file, content))
        else:
            found += known
    for (file, content), diagnostics in zip(new, _linted(new, settings, structures), strict=True):
        found += diagnostics
        if kept is not None:
            kept.keep(file, content, diagnostics)
    if kept is not None and new:
        kept.write()
    return in_order(found), contents


def _linted(
    new: Sequence[tuple[str, bytes]], settings: Settings, structures: Structures | None
) -> list[list[Diagnostic]]:
    work = partial(_lint_one, settings=settings, structures=structures)
    if sum(len(content) for _, content in new) < _WORTH_SHARING or len(new) < 2:
        return [work(one) for one in new]
    # spawned, since forking a process that has threads may deadlock
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, new, chunksize=max(1, len(new) // 8)))


def _lint_one(
    one: tuple[str, bytes], settings: Settings, structures: Structures | None
) -> list[Diagnostic]:
    file, content = one
    return lint(file, content, settings, structures)


class _Kept:
    """The cache of findings, by name and content of the files."""

    def __init__(self, settings: Settings, structures: Structures | None) -> None:
        known = {str(name): one.as_json() for name, one in (structures or {}).items()}
        parts = json.dumps(
            [__version__, _rules_hash(), sys.version, repr(settings), known], sort_keys=True
        )
        name = hashlib.sha256(parts.encode()).hexdigest()[:24]
        self._path = cache_folder() / "lint" / f"{name}.json"
        try:
            read: Any = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            read = {}
        self._entries: dict[str, Any] = read if isinstance(read, dict) else {}

    def found(self, file: str, content: bytes) -> list[Diagnostic] | None:
        """Return the cached diagnostics of a file, None if it is not in the cache."""
        entry = self._entries.get(_key(file, content))
        try:
            return None if entry is None else [_diagnostic(one, file) for one in entry]
        except (TypeError, KeyError, ValueError):
            return None

    def keep(self, file: str, content: bytes, diagnostics: Sequence[Diagnostic]) -> None:
        """Add the diagnostics of a file to the cache."""
        self._entries[_key(file, content)] = [
            {**one.as_dict(), "fix": [[i.line, i.column, i.text] for i in one.fix]}
            for one in diagnostics
        ]

    def write(self) -> None:
        """Write the cache file."""
        entries = dict(list(self._entries.items())[-_MOST_KEPT:])
        write_whole(self._path, json.dumps(entries))


def _key(file: str, content: bytes) -> str:
    # the name is part of the key: it decides whether the file is a notebook and which rules apply
    return hashlib.sha256(file.encode() + b"\0" + content).hexdigest()


def _rules_hash() -> str:
    """Hash the sources of the linter and of `transforms`, by modification time and size."""
    import nnsight_dsl.transforms

    folders = [Path(__file__).parent, Path(str(nnsight_dsl.transforms.__file__)).parent]
    stats = [
        (file.name, file.stat().st_mtime_ns, file.stat().st_size)
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _diagnostic(entry: Mapping[str, Any], file: str) -> Diagnostic:
    found = Diagnostic(
        file,
        entry["line"],
        entry["column"],
        entry["end_line"],
        entry["end_column"],
        entry["code"],
        entry["message"],
        entry["severity"],
        entry.get("cell"),
    )
    return replace(found, fix=tuple(Insertion(*one) for one in entry["fix"]))
