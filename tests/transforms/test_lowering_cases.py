"""Golden pairs: what each construct is lowered to.

`tests/cases/lowering/<construct>/before.py` holds one `with` statement, `after.py` its program and
the programs of the blocks inside it. They are read as documentation as much as they are run.
`PYTHONPATH=. python tests/transforms/test_lowering_cases.py` writes the second files anew; read the
difference.
"""

import ast
from pathlib import Path

import pytest

from nnsight_dsl.transforms.program import Program
from tests.transforms.lowering import lower

CASES = Path(__file__).resolve().parent.parent / "cases" / "lowering"
CONSTRUCTS = sorted(path.parent.name for path in CASES.glob("*/before.py"))


def lowered_text(program: Program) -> str:
    texts = [found.lowered.rstrip("\n") + "\n" for found in program.all_programs()]
    return "\n\n".join(texts)


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_construct_is_lowered_as_its_page_shows(construct):
    folder = CASES / construct
    program = lower((folder / "before.py").read_text(encoding="utf-8"))
    assert lowered_text(program) == (folder / "after.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_page_holds_one_block_below_a_line_that_says_what_it_shows(construct):
    text = (CASES / construct / "before.py").read_text(encoding="utf-8")
    (statement,) = ast.parse(text).body
    assert isinstance(statement, ast.With)
    assert text.startswith("# ")
    assert statement.lineno == 2


def test_every_folder_is_a_pair():
    folders = {path.name for path in CASES.iterdir()}
    assert folders == set(CONSTRUCTS)
    assert len(folders) >= 40


if __name__ == "__main__":
    for construct in CONSTRUCTS:
        before = (CASES / construct / "before.py").read_text(encoding="utf-8")
        (CASES / construct / "after.py").write_text(lowered_text(lower(before)), encoding="utf-8")
