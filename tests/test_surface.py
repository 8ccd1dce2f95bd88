"""docs/surface.md names a test for each statement, and every test that it names is there."""

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import pytest

import nnsight_dsl

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "surface.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
SECTIONS = [
    "Iteration",
    "Gradients",
    "Sessions",
    "Editing",
    "Scan and validate",
    "Cache",
    "Skip, stop, rename, barriers and the rest",
    "Models",
    "Automatic synchronisation",
    "Concurrency",
    "Where versions differ",
    "Errors of the guide's table",
    "Stress",
    "Beyond the guide",
]

# what the guide's table of common exceptions is here, and what it derives from there
TABLE = [
    ("OutOfOrderError", "ValueError"),
    ("NotCalledError", "ValueError"),
    ("GradientOrderError", "ValueError"),
    ("NotRunningError", "ValueError"),
    ("NoInputError", "ValueError"),
    ("InvokeError", "ValueError"),
    ("GradientError", "ValueError"),
    ("PathError", "AttributeError"),
    ("TokenizerNotFoundError", "AttributeError"),
    ("BatchingError", "NotImplementedError"),
]


def rows() -> list[tuple[str, str, str]]:
    """The page's rows: section, statement and the cell with the tests."""
    found = []
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("|") and not line.startswith(("| statement |", "| --- |")):
            statement, _, cell = line.strip("| ").rpartition(" | ")
            found.append((section, statement, cell))
    return found


@cache
def defined_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def test_every_part_of_the_surface_has_rows():
    assert list(dict.fromkeys(section for section, _, _ in rows())) == SECTIONS


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_row_has_a_statement_and_tests_that_are_there(row):
    _, statement, cell = row
    assert statement.strip()
    named = NAMED.findall(cell)
    assert named
    # nothing stands in the cell but names of tests
    assert NAMED.sub("", cell).strip(", ") == ""
    for file, test in named:
        assert (ROOT / file).is_file(), f"{file} is not there"
        assert test in defined_in(file), f"{file} has no {test}"


def test_no_statement_stands_twice():
    statements = [(section, statement) for section, statement, _ in rows()]
    assert len(statements) == len(set(statements))


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_an_error_of_the_table_is_importable_and_of_its_type(name, kind):
    assert issubclass(getattr(nnsight_dsl, name), getattr(builtins, kind))
    assert (ROOT / "docs" / "errors" / f"{name}.md").is_file()
