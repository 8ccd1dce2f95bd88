"""docs/guide-index.md and the tests of this folder name each other."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
INDEX = HERE.parents[1] / "docs" / "guide-index.md"
SAMPLES = 100
LEFT_OUT = ("vLLM", "remote execution")
MARK = re.compile(r"# guide (\d+|table|notes)")
ROW = re.compile(r"\| (\d+|table|notes) \| (\d+) \| ([^|]+) \| ([^|]+) \|")


def _tests() -> dict[str, set[str]]:
    """The tests of each sample, from the comment above each test."""
    found: dict[str, set[str]] = {}
    for file in sorted(HERE.glob("test_*.py")):
        if file.name == Path(__file__).name:
            continue
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                mark = MARK.fullmatch(lines[first - 2])
                assert mark, f"{file.name}: {node.name} does not say which sample it is of"
                found.setdefault(mark[1], set()).add(f"{file.name}::{node.name}")
    return found


def _rows() -> list[tuple[str, str, str, str]]:
    return [
        match.groups()
        for line in INDEX.read_text(encoding="utf-8").splitlines()
        if (match := ROW.fullmatch(line))
    ]


def test_every_sample_has_one_row_in_order():
    rows = _rows()
    numbers = [number for number, *_ in rows if number.isdigit()]
    assert numbers == [str(number) for number in range(1, SAMPLES + 1)]
    lines = [int(line) for number, line, *_ in rows if number.isdigit()]
    assert lines == sorted(set(lines))


def test_rows_and_tests_agree():
    tests = _tests()
    named = {}
    for number, _, _, cell in _rows():
        if cell.startswith("left out: "):
            assert cell.removeprefix("left out: ") in LEFT_OUT
            assert number not in tests
        else:
            named[number] = set(re.findall(r"`(test_\w+\.py::test_\w+)`", cell))
            assert named[number], f"sample {number} has no test"
    assert named == tests
