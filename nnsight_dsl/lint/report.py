"""Report formats: diagnostics as text, JSON, GitHub annotations or SARIF.

Each format is a function of the diagnostics and of the contents of the files, registered in
`FORMATS` under its name on the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .diagnostics import ERROR, Diagnostic

_LONGEST_LINE = 120


def as_text(diagnostics: Sequence[Diagnostic], contents: Mapping[str, bytes]) -> str:
    """Return each diagnostic with its source line and carets below the code it is about."""
    parts = [_with_excerpt(one, contents) for one in diagnostics]
    count = len(diagnostics)
    fixable = sum(bool(one.fix) for one in diagnostics)
    parts.append(f"{count} finding{'s' * (count != 1)}" if count else "nothing found")
    if fixable:
        parts[-1] += f", {fixable} of them fixable with --fix"
    return "\n".join(parts)


def _with_excerpt(one: Diagnostic, contents: Mapping[str, bytes]) -> str:
    place = one.file if one.cell is None else f"{one.file}:cell {one.cell}"
    head = f"{place}:{one.line}:{one.column}: {one.code} {one.message}"
    line = _line_of(one, contents)
    if not line.strip():
        return head
    shown = line[:_LONGEST_LINE]
    # tabs are copied, so that the caret is below the text whatever the width of a tab
    before = "".join("\t" if char == "\t" else " " for char in line[: one.column - 1])
    width = one.end_column - one.column if one.end_line == one.line else len(line) + 1 - one.column
    carets = "^" * max(1, min(width, _LONGEST_LINE - len(before)))
    number = str(one.line)
    gutter = " " * len(number)
    caret_line = f"\n{gutter} | {before}{carets}" if one.column <= _LONGEST_LINE else ""
    return f"{head}\n{gutter} |\n{number} | {shown}{caret_line}\n"


def _line_of(one: Diagnostic, contents: Mapping[str, bytes]) -> str:
    from .sources import UnreadableError, source_of

    try:
        source = source_of(one.file, contents[one.file])
    except (UnreadableError, KeyError):
        return ""
    lines = source.lines
    if source.cells is not None:
        lines = [
            text
            for text, (cell, _) in zip(source.lines, source.cells, strict=True)
            if cell == one.cell
        ]
    return lines[one.line - 1] if one.line <= len(lines) else ""


def as_json(diagnostics: Sequence[Diagnostic], contents: Mapping[str, bytes]) -> str:
    """Return the diagnostics as a JSON list of objects."""
    return json.dumps([one.as_dict() for one in diagnostics], indent=2)


def as_github(diagnostics: Sequence[Diagnostic], contents: Mapping[str, bytes]) -> str:
    """Return GitHub workflow commands, which GitHub shows as annotations of a change's lines."""
    return "\n".join(
        f"::{one.severity} file={_property(one.file)},line={one.line},col={one.column},"
        f"endLine={one.end_line},title={_property(one.code)}::{_escaped(_in_cell(one))}"
        for one in diagnostics
    )


def _in_cell(one: Diagnostic) -> str:
    return one.message if one.cell is None else f"cell {one.cell}: {one.message}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def as_sarif(diagnostics: Sequence[Diagnostic], contents: Mapping[str, bytes]) -> str:
    """Return a SARIF 2.1.0 log."""
    from nnsight_dsl.version import __version__

    from .rules import RULES

    driver = {
        "name": "nnsight-dsl",
        "version": __version__,
        "rules": [
            {
                "id": rule.code,
                "name": rule.name,
                "shortDescription": {"text": rule.summary},
                "fullDescription": {"text": rule.page},
                "defaultConfiguration": {"level": rule.severity},
            }
            for rule in RULES
        ],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(one) for one in diagnostics],
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2)


def _result(one: Diagnostic) -> dict[str, Any]:
    region = {
        "startLine": one.line,
        "startColumn": one.column,
        "endLine": one.end_line,
        "endColumn": max(one.end_column, 1),
    }
    location = {"artifactLocation": {"uri": Path(one.file).as_posix()}, "region": region}
    return {
        "ruleId": one.code,
        "level": "error" if one.severity == ERROR else "warning",
        "message": {"text": _in_cell(one)},
        "locations": [{"physicalLocation": location}],
    }


FORMATS: dict[str, Callable[[Sequence[Diagnostic], Mapping[str, bytes]], str]] = {
    "text": as_text,
    "json": as_json,
    "github": as_github,
    "sarif": as_sarif,
}
