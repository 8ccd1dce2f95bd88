"""Each error class has a page, whose wrong example raises it and whose right example runs."""

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nnsight_dsl
from nnsight_dsl import Envoy, LanguageModel, NNsight, errors
from nnsight_dsl.tracing.intervene import intervene
from tests import models

PAGES = Path(__file__).resolve().parent.parent / "docs" / "errors"
NAMES = sorted(errors.__all__)

# ours alone can cause it
WITHOUT_EXAMPLE = {"InternalError"}
WITH_EXAMPLE = [name for name in NAMES if name not in WITHOUT_EXAMPLE]


class Net(nn.Module):
    """Two layers that run, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> Any:
        result: torch.Tensor = self.second(self.first(x))
        return result


@pytest.fixture
def names() -> dict[str, Any]:
    module = models.new_gpt2()
    return {
        "Envoy": Envoy,
        "LanguageModel": LanguageModel,
        "intervene": intervene,
        "model": LanguageModel(module, tokenizer=models.tokenizer()),
        "module": module,
        "net": NNsight(Net()),
        "nnsight_dsl": nnsight_dsl,
        "tokenizer": models.tokenizer(),
        "torch": torch,
        "x": torch.ones(2, 3),
    }


@pytest.fixture
def forget_text() -> Iterator[None]:
    before = set(linecache.cache)
    yield
    for name in set(linecache.cache) - before:
        del linecache.cache[name]


def text_of(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def example(name: str, heading: str) -> str:
    pattern = rf"^## {heading}\n\n```python\n(.*?)^```$"
    (found,) = re.findall(pattern, text_of(name), re.MULTILINE | re.DOTALL)
    return str(found)


def run(text: str, filename: str, names: dict[str, Any]) -> None:
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)


def test_every_class_has_a_page_and_every_page_a_class():
    assert sorted(path.stem for path in PAGES.glob("*.md")) == NAMES
    assert [path.name for path in PAGES.iterdir() if path.suffix != ".md"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_begins_with_its_class_and_says_what_was_seen(name):
    title, blank, first, *rest = text_of(name).splitlines()
    assert (title, blank) == (f"# {name}", "")
    assert first
    assert max(len(line) for line in [first, *rest]) <= 100
    assert text_of(name).count("```python") == (0 if name in WITHOUT_EXAMPLE else 2)


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_wrong_example_raises_the_error(name, names, forget_text):
    kind = getattr(errors, name)
    with pytest.raises(kind) as caught:
        run(example(name, "Wrong"), f"<wrong example of {name}>", names)
    if name != "InterventionError":
        assert type(caught.value) is kind


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_right_example_runs(name, names, forget_text):
    run(example(name, "Right"), f"<right example of {name}>", names)
