"""`docs/tour.md` names each file of the package, and each file that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
NAMED = {*re.findall(r"`([\w/*]+\.py)`", TOUR)}


def files() -> set[str]:
    found = set()
    for folder in ("nnsight_dsl", "runtime", "transforms"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).parts
            # the links to the other two folders
            if parts[:2] not in (("nnsight_dsl", "runtime"), ("nnsight_dsl", "transforms")):
                found.add("/".join(parts))
    return found


def test_each_file_is_named() -> None:
    missing = {one for one in files() - NAMED if not one.startswith("nnsight_dsl/lint/rules/")}
    assert missing == set()
    assert "nnsight_dsl/lint/rules/*.py" in NAMED


def test_each_file_that_is_named_exists() -> None:
    existing = {*files(), *(f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py"))}
    assert {one for one in NAMED if "*" not in one} - existing == set()


def test_each_file_has_one_sentence() -> None:
    rows = re.findall(r"^\| `([\w/*]+\.py)` \| (.+) \|$", TOUR, flags=re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}) >= len(files()) - 60
