"""Each rule finds what is wrong, only that, and what it finds is wrong: the code is run as well.

`tests/cases/rules/<name>/` has a file of wrong snippets and one of right ones. Each snippet begins
with `# %%`; in the wrong file the line goes on with what running the snippet does without the
linter: it raises an error, warns, or misleads, which asserts of its own prove. `#> NNS102 9` at the
end of a line says that the linter reports that code there, in that column, and nothing else.
"""

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight_dsl
from nnsight_dsl import CONFIG, LanguageModel, NNsight, errors, intervene
from nnsight_dsl.lint.engine import lint
from nnsight_dsl.lint.models import structure_for
from nnsight_dsl.lint.pages import example_of, index, page_of
from nnsight_dsl.lint.rules import RULES
from nnsight_dsl.lint.settings import Settings
from tests import models

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases" / "rules"
PAGES = ROOT / "docs" / "rules"
NAMES = [rule.name for rule in RULES]
# what these say is known of a model only
WITH_MODEL = {"NNS101", "NNS201", "NNS202", "NNS205", "NNS203", "NNS204", "NNS304"}
EXPECTED = re.compile(r"#> (NNS\d{3}) (\d+)")
SNIPPET = re.compile(r"^# %%(.*)\n", re.MULTILINE)


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str | None, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {None: structure_for("tests.models:new_gpt2")}


@pytest.fixture
def names() -> dict[str, Any]:
    module = models.new_gpt2()
    tokenizer = models.tokenizer()
    return {
        "LanguageModel": LanguageModel,
        "NNsight": NNsight,
        "intervene": intervene,
        "model": LanguageModel(module, tokenizer=tokenizer),
        "module": module,
        "nnsight_dsl": nnsight_dsl,
        "tokenizer": tokenizer,
        "torch": torch,
    }


@pytest.fixture(autouse=True)
def forget_text() -> Iterator[None]:
    before = set(linecache.cache)
    yield
    for name in set(linecache.cache) - before:
        del linecache.cache[name]


def snippets(name: str, which: str) -> list[tuple[str, str]]:
    """What each snippet of a file does when it is run, and its text, in its place."""
    text = (CASES / name / f"{which}.py").read_text(encoding="utf-8")
    marks = list(SNIPPET.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        (mark[1].strip(), "\n" * text.count("\n", 0, mark.end()) + text[mark.end() : end])
        for mark, end in zip(marks, ends, strict=True)
    ]


def run(text: str, names: dict[str, Any]) -> None:
    filename = f"<snippet {abs(hash(text)):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)


def found(text: str, structures: Any) -> list[tuple[int, str, int]]:
    diagnostics = lint("case.py", text.encode(), Settings(), structures)
    return [(one.line, one.code, one.column) for one in diagnostics]


def expected(text: str) -> list[tuple[int, str, int]]:
    return [
        (number, mark[1], int(mark[2]))
        for number, line in enumerate(text.splitlines(), start=1)
        for mark in EXPECTED.finditer(line)
    ]


def test_every_rule_has_cases_and_every_case_a_rule():
    assert sorted(path.name for path in CASES.iterdir()) == sorted(NAMES)


def test_codes_and_names_are_used_once():
    assert len({rule.code for rule in RULES}) == len(RULES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_the_wrong_code_is_found(name, structures):
    text = (CASES / name / "wrong.py").read_text(encoding="utf-8")
    code = next(rule.code for rule in RULES if rule.name == name)
    marked = expected(text)
    assert marked and {one[1] for one in marked} == {code}
    assert found(text, structures) == marked
    assert found(text, None) == ([] if code in WITH_MODEL else marked)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_code_is_left_alone(name, structures):
    text = (CASES / name / "right.py").read_text(encoding="utf-8")
    assert found(text, structures) == []
    assert found(text, None) == []


WRONG = [(name, i) for name in NAMES for i in range(len(snippets(name, "wrong")))]
RIGHT = [(name, i) for name in NAMES for i in range(len(snippets(name, "right")))]


@pytest.mark.parametrize(("name", "number"), WRONG)
def test_the_wrong_code_goes_wrong(name, number, names, unlinted):
    outcome, text = snippets(name, "wrong")[number]
    verb, _, rest = outcome.partition(" ")
    assert expected(text), "each snippet is one finding at least"
    if verb == "raises":
        kind = ERRORS.get(rest) or getattr(errors, rest)
        with pytest.raises(kind):
            run(text, names)
    elif verb == "warns":
        with pytest.warns(UserWarning, match=rest):
            run(text, names)
    else:
        # the snippet itself asserts that it does something else than it seems to
        assert verb == "misleads" and "\nassert " in text
        run(text, names)


ERRORS = {
    "AttributeError": AttributeError,
    "IndexError": IndexError,
    "NameError": NameError,
    "SyntaxError": SyntaxError,
}


@pytest.mark.parametrize(("name", "number"), RIGHT)
def test_the_right_code_runs(name, number, names):
    assert CONFIG.APP.LINT == "error"
    run(snippets(name, "right")[number][1], names)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_page_is_made_from_the_docstring(rule):
    assert (PAGES / f"{rule.code}.md").read_text(encoding="utf-8") == page_of(rule)
    assert max(map(len, page_of(rule).splitlines())) <= 100


def test_there_is_a_page_for_each_rule_and_an_index():
    assert sorted(path.stem for path in PAGES.glob("NNS*.md")) == sorted(r.code for r in RULES)
    assert (PAGES / "README.md").read_text(encoding="utf-8") == index()


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_examples_of_the_page_are_as_they_say(rule, structures):
    wrong = found(example_of(rule, "Wrong"), structures)
    assert [one[1] for one in wrong] == [rule.code]
    assert found(example_of(rule, "Right"), structures) == []


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_right_example_runs(rule, names):
    run(example_of(rule, "Right"), names)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_messages_say_what_was_seen_and_what_to_do(rule, structures):
    text = (CASES / rule.name / "wrong.py").read_bytes()
    for one in lint("case.py", text, Settings(), structures):
        seen, semicolon, advice = one.message.partition("; ")
        assert seen and semicolon and advice
        assert "!" not in one.message
