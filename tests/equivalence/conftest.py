"""Models for the tests that compare a block with hand-written hooks."""

import pytest

from nnsight_dsl import LanguageModel
from tests import models
from tests.models import Kind


@pytest.fixture(params=models.KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def model(kind: Kind) -> LanguageModel:
    return models.wrapped(kind)


@pytest.fixture
def gpt2() -> LanguageModel:
    return models.wrapped(models.GPT2)


@pytest.fixture
def llama() -> LanguageModel:
    return models.wrapped(models.LLAMA)


@pytest.fixture
def bert() -> LanguageModel:
    return models.wrapped(models.BERT)
