"""Linting of one file: from its content to its diagnostics.

    lint("experiment.py", content, Settings())      # [Diagnostic(..., "NNS101", ...), ...]

A file that cannot be read gives a diagnostic of the rule `unreadable-file`, not an exception. A
file without a word that could open a block is not analysed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace

from nnsight_dsl.transforms.prefilter import may_hold_blocks

from .analysis import File
from .diagnostics import Diagnostic, Finding, in_order
from .fixes import can_be_fixed
from .model_facts import Structure
from .rules import BY_CODE, RULES, Rule, unreadable_file
from .settings import Settings
from .sources import Source, UnreadableError, parse, source_of
from .suppressions import suppressed_at

Structures = Mapping[str | None, Structure]
"""Facts about models, by the name that files use for the model; the key None matches any name."""


def lint(
    file: str, content: bytes, settings: Settings, structures: Structures | None = None
) -> list[Diagnostic]:
    """Lint the content of a file.

    Args:
        file: name of the file, for diagnostics; its ending decides whether it is a notebook.
        content: the bytes of the file.
        settings: which rules apply.
        structures: facts about models; None to lint from the text alone.

    Returns:
        The diagnostics, in order of position.
    """
    try:
        source = source_of(file, content)
        broken = list(source.broken)
        try:
            module = parse(source)
            found = _findings(source, module, content, structures)
        except RecursionError:
            found = []
            broken.append(UnreadableError("this is nested too deeply to be looked at"))
    except UnreadableError as error:
        found, broken = [], [error]
        source = Source(file, content.decode(errors="replace").splitlines())
    if any(finding.fix for _, finding in found) and not can_be_fixed(source, content):
        found = [(rule, replace(finding, fix=())) for rule, finding in found]
    diagnostics = [
        _diagnostic(source, rule, finding)
        for rule, finding in found
        if settings.holds(rule.code, file) and not _is_suppressed(source, rule, finding)
    ]
    rule = BY_CODE[unreadable_file.CODE]
    if settings.holds(rule.code, file):
        diagnostics += [
            Diagnostic(
                file,
                error.line,
                error.column + 1,
                error.line,
                error.column + 1,
                rule.code,
                f"{error}; nothing is said about the rest",
                rule.severity,
                error.cell,
            )
            for error in broken
        ]
    return in_order(diagnostics)


def _findings(
    source: Source, module: ast.Module, content: bytes, structures: Structures | None
) -> list[tuple[Rule, Finding]]:
    is_of_interest = source.cells is not None or may_hold_blocks(content)
    if not is_of_interest and b"intervene" not in content and b".backward(" not in content:
        return []
    file = File(source, module, structures)
    return findings_in(file) if file.blocks else []


def findings_in(file: File) -> list[tuple[Rule, Finding]]:
    """Run all rules over a file; the first finding of a rule at a node wins."""
    found: dict[tuple[str, ast.AST], tuple[Rule, Finding]] = {}
    for rule in RULES:
        for finding in rule.check(file):
            # code in a `with pytest.raises(...)` is meant to fail
            if not file.tree.is_expected_to_fail(finding.node):
                found.setdefault((rule.code, finding.node), (rule, finding))
    return list(found.values())


def _is_suppressed(source: Source, rule: Rule, finding: Finding) -> bool:
    node = finding.node
    return suppressed_at(source.lines, node.lineno, node.end_lineno or 0, rule.code)


def _diagnostic(source: Source, rule: Rule, finding: Finding) -> Diagnostic:
    node = finding.node
    line, end_line = node.lineno, node.end_lineno or node.lineno
    column = _characters(source, line, node.col_offset) + 1
    end_column = _characters(source, end_line, node.end_col_offset or 0) + 1
    cell = None
    if source.cells is not None:
        cell, own_line = source.cells[line - 1]
        line, end_line = own_line, own_line + end_line - line
    return Diagnostic(
        source.file,
        line,
        column,
        end_line,
        end_column,
        rule.code,
        finding.message,
        rule.severity,
        cell,
        finding.fix,
    )


def _characters(source: Source, line: int, column: int) -> int:
    """Convert a column in bytes, as `ast` counts, into one in characters."""
    text = source.lines[line - 1] if line <= len(source.lines) else ""
    return column if text.isascii() else len(text.encode()[:column].decode(errors="replace"))
