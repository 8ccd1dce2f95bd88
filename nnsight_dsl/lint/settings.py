"""Settings of the linter: `[tool.nnsight-dsl]` in `pyproject.toml`, and the command line.

    [tool.nnsight-dsl]
    select = ["NNS"]                 # codes, or prefixes of codes; default: all
    ignore = ["NNS303"]
    exclude = ["third_party"]
    model = "examples/models/city-facts"

    [tool.nnsight-dsl.per-file-ignores]
    "tests/*" = ["NNS3"]

The settings come from the nearest `pyproject.toml` with such a table, in the folder of the first
linted path or above it. An unknown key or code is an error rather than ignored, since a misspelled
code would silently disable a rule.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from .rules import BY_CODE


class SettingsError(Exception):
    """The settings cannot be read; the command line reports it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings: which rules apply to which files.

    Attributes:
        select: prefixes of the codes to report.
        ignore: prefixes of the codes not to report, which take precedence.
        per_file: pairs of a file name pattern and prefixes of the codes ignored in such files.
        exclude: patterns of files and folders to leave out when a folder is searched.
        models: models to lint with, in the form of the option `--model`.
        root: the folder to which patterns are relative.
    """

    select: tuple[str, ...] = ("NNS",)
    ignore: tuple[str, ...] = ()
    per_file: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exclude: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    root: Path = field(default_factory=Path)

    def holds(self, code: str, file: str) -> bool:
        """Return whether findings of a rule are reported in a file."""
        if not code.startswith(self.select) or code.startswith(self.ignore or ("\0",)):
            return False
        return not any(
            code.startswith(codes) and self._matches(file, pattern)
            for pattern, codes in self.per_file
        )

    def _matches(self, file: str, pattern: str) -> bool:
        path = Path(file).absolute()
        try:
            relative = path.relative_to(self.root.absolute()).as_posix()
        except ValueError:
            relative = path.as_posix()
        return fnmatch(relative, pattern) or PurePath(relative).match(pattern)


def settings_for(paths: Sequence[Path]) -> Settings:
    """Read the settings for some paths; the defaults if there is no settings file.

    Raises:
        SettingsError: the file cannot be read, or its table has an unknown key or a wrong value.
    """
    start = (paths[0] if paths else Path()).absolute()
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} cannot be read: {error}") from None
        if "nnsight-dsl" in table:
            return _settings(table["nnsight-dsl"], file)
    return Settings()


def known_codes(codes: Sequence[str], where: str) -> Sequence[str]:
    """Check that each code is the code of a rule or a prefix of one, and return the codes.

    Args:
        codes: the codes.
        where: names their origin in the error message.

    Raises:
        SettingsError: a code matches no rule.
    """
    for one in codes:
        if not one or not any(code.startswith(one) for code in BY_CODE):
            raise SettingsError(
                f"{where} has {one!r}, with which no rule's code begins; 'nnsight-dsl rule all' "
                "lists them"
            )
    return codes


def _settings(table: Any, file: Path) -> Settings:
    known = {"select", "ignore", "exclude", "model", "per-file-ignores"}
    unknown = sorted(set(table) - known) if isinstance(table, dict) else ["tool.nnsight-dsl"]
    if unknown:
        raise SettingsError(
            f"{file}: {unknown[0]!r} is not a setting of [tool.nnsight-dsl]; it has "
            f"{', '.join(sorted(known))}"
        )
    per_file = table.get("per-file-ignores", {})
    if not isinstance(per_file, dict):
        raise SettingsError(f"{file}: per-file-ignores is not a table; write patterns and codes")
    for key in ("select", "ignore"):
        known_codes(_codes(table, key, file), f"{file}: {key!r}")
    for pattern in per_file:
        known_codes(_codes(per_file, pattern, file), f"{file}: {pattern!r}")
    return Settings(
        select=_codes(table, "select", file) or ("NNS",),
        ignore=_codes(table, "ignore", file),
        per_file=tuple((pattern, _codes(per_file, pattern, file)) for pattern in per_file),
        exclude=_codes(table, "exclude", file),
        models=_codes(table, "model", file),
        root=file.parent,
    )


def _codes(table: Any, key: str, file: Path) -> tuple[str, ...]:
    value = table.get(key, [])
    if key == "model" and isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise SettingsError(f'{file}: {key!r} is no list of strings; write ["NNS101"]')
    return tuple(value)
