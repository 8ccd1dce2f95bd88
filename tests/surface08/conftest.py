"""Programs written for nnsight 0.8: each test is one, with its own `import nnsight`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nnsight_dsl import compat
from tests import models


@pytest.fixture(autouse=True)
def given_tokenizer() -> Iterator[None]:
    """Restore the tokenizer of all tests, which a wrapper of 0.8 lets pad on the left."""
    side = models.tokenizer().padding_side
    yield
    models.tokenizer().padding_side = side


@pytest.fixture
def as_08() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


@pytest.fixture
def as_06() -> Iterator[None]:
    compat.install("0.6")
    yield
    compat.uninstall()


@pytest.fixture
def gpt2(as_08):
    """GPT-2 with random weights, wrapped by the class that programs for 0.8 name."""
    from nnsight import TransformersModel

    return TransformersModel(models.new_gpt2(), tokenizer=models.tokenizer())


@pytest.fixture
def gpt2_06(as_06):
    from nnsight import LanguageModel

    return LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
