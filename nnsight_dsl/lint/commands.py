"""The commands `nnsight-dsl lint` and `nnsight-dsl rule`, without the top-level parser.

Exit status: 0 if there are no findings, 1 if there are, 2 if the linter could not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .engine import Structures
from .fixes import fixed
from .incremental import lint_files
from .report import FORMATS
from .settings import Settings, SettingsError, known_codes, settings_for
from .sources import files_in

CLEAN, FOUND, UNUSABLE = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnsight-dsl lint` to a parser."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a model's folder or name, or package.module:factory; NAME is what files call it",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="text")
    parser.add_argument("--fix", action="store_true", help="make the fixes that are safe")
    parser.add_argument("--select", metavar="CODES", help="report these only: NNS1,NNS302")
    parser.add_argument("--ignore", metavar="CODES", help="do not report these")
    parser.add_argument("--no-cache", action="store_true", help="lint what has not changed, too")


def run(given: argparse.Namespace) -> int:
    """Run `nnsight-dsl lint`: print a report and return the exit status."""
    try:
        settings = _settings(given)
        structures = structures_of(given.model or settings.models)
        paths = list(dict.fromkeys(files_in(given.paths, settings.exclude)))
        found, contents = lint_files(paths, settings, structures, keeps=not given.no_cache)
        if given.fix and any(one.fix for one in found):
            for file, content in contents.items():
                new = fixed(file, content, found)
                if new != content:
                    Path(file).write_bytes(new)
            found, contents = lint_files(paths, settings, structures, keeps=not given.no_cache)
    except (SettingsError, OSError) as error:
        print(f"nnsight-dsl lint: {error}", file=sys.stderr)
        return UNUSABLE
    text = FORMATS[given.format](found, contents)
    if text:
        print(text)
    return FOUND if found else CLEAN


def show_rule(code: str) -> int:
    """Run `nnsight-dsl rule`: print the page of a rule, or the index for `all`."""
    from .pages import index, text_of

    text = index() if code == "all" else text_of(code)
    if text is None:
        print(f"{code} is not a rule; 'nnsight-dsl rule all' lists them", file=sys.stderr)
        return UNUSABLE
    print(text, end="")
    return CLEAN


def _settings(given: argparse.Namespace) -> Settings:
    for path in given.paths:
        if not path.exists():
            raise SettingsError(f"{path} does not exist; give files or folders")
    settings = settings_for(given.paths)
    if given.select:
        settings = replace(settings, select=_codes(given.select, "--select"))
    if given.ignore:
        settings = replace(settings, ignore=(*settings.ignore, *_codes(given.ignore, "--ignore")))
    return settings


def _codes(text: str, option: str) -> tuple[str, ...]:
    codes = tuple(code.strip().upper() for code in text.split(",") if code.strip())
    return tuple(known_codes(codes, option))


def structures_of(models: Sequence[str]) -> Structures | None:
    """Return facts about models, by the name that files use for each.

    Args:
        models: values of `--model`: `MODEL`, or `NAME=MODEL` for the model that files call `NAME`.

    Returns:
        The facts, under None for a model without a name; None if no models are given.

    Raises:
        SettingsError: a model cannot be built.
    """
    if not models:
        return None
    from .models import structure_for

    found = {}
    for given in models:
        name, equals, reference = given.partition("=")
        is_named = bool(equals) and name.replace(".", "").isidentifier()
        found[name if is_named else None] = structure_for(reference if is_named else given)
    return found
