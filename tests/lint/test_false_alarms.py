"""All code of this repository that is meant to run is clean, with its model and without."""

import re
from pathlib import Path

import pytest

from nnsight_dsl.lint.engine import lint
from nnsight_dsl.lint.models import structure_for
from nnsight_dsl.lint.settings import settings_for
from nnsight_dsl.lint.sources import files_in
from tests.language.constructs import MEANT, REFUSALS

ROOT = Path(__file__).resolve().parents[2]
CITY_FACTS = str(ROOT / "examples" / "models" / "city-facts")
SETTINGS = settings_for([ROOT])


def findings(paths, structures=None):
    return [
        f"{one.file}:{one.line}:{one.column}: {one.code} {one.message}"
        for path in files_in(paths, SETTINGS.exclude)
        for one in lint(str(path), path.read_bytes(), SETTINGS, structures)
    ]


FOLDERS = ["tests", "examples", "benchmarks", "nnsight_dsl", "runtime", "transforms"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_without_a_model(folder):
    assert findings([ROOT / folder]) == []


def test_the_guide_and_the_examples_with_their_model():
    structures = {None: structure_for(CITY_FACTS)}
    assert structures[None].is_ordered
    assert findings([ROOT / "tests" / "guide", ROOT / "examples"], structures) == []


def test_tests_with_the_models_that_their_names_stand_for():
    structures = {
        "gpt2": structure_for("tests.models:new_gpt2"),
        "llama": structure_for("tests.models:new_llama"),
        "bert": structure_for("tests.models:new_bert"),
        "net": structure_for("tests.test_failures:Net"),
    }
    found = findings([ROOT / "tests"], structures)
    # in tests/vllm the names stand for models in an engine, which has places of its own
    engines = str(ROOT / "tests" / "vllm")
    assert [one for one in found if not one.startswith(engines)] == []


def test_right_examples_of_the_errors_and_of_the_readme():
    pages = sorted((ROOT / "docs" / "errors").glob("*.md"))
    texts = [
        text
        for page in pages
        for text in re.findall(
            r"^## Right\n\n```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        )
    ]
    readme = (ROOT / "README.md").read_text()
    texts += re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(texts) >= 20
    for text in texts:
        assert lint("page.py", text.encode(), SETTINGS) == [], text


@pytest.mark.parametrize("construct", MEANT, ids=lambda one: one.name)
def test_every_construct_that_a_block_may_hold(construct):
    texts = [construct.module_text(), construct.intervention_text(alone=False)]
    if not construct.text:
        texts.append(construct.function_text())
    for text in texts:
        found = lint("construct.py", text.encode(), SETTINGS)
        assert found == [], text


@pytest.mark.parametrize("construct", REFUSALS, ids=lambda one: one.name)
def test_every_construct_that_is_refused(construct):
    (found,) = lint("construct.py", construct.text.encode(), SETTINGS)
    assert found.code == "NNS801"
    assert construct.remedy in found.message
