"""The model of the guide's samples: city-facts, a GPT-2 of six layers, 128 wide."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from nnsight_dsl import CONFIG, LanguageModel
from tests.guide.parts import FOLDER, Plain


@pytest.fixture(scope="session", autouse=True)
def no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def shared(no_progress_bars: None) -> LanguageModel:
    return LanguageModel(str(FOLDER), dispatch=True)


@pytest.fixture
def model(shared: LanguageModel) -> Iterator[LanguageModel]:
    """The wrapper of most samples; edits of one test do not reach the next."""
    yield shared
    shared.clear_edits()


@pytest.fixture(scope="session")
def plain(shared: LanguageModel) -> Plain:
    return Plain(shared.tokenizer)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """CONFIG, whose file lies in a folder of the test and whose values are put back."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    before = {name: getattr(CONFIG.APP, name) for name in ("DEBUG", "CROSS_INVOKER", "PYMOUNT")}
    yield CONFIG
    for name, value in before.items():
        setattr(CONFIG.APP, name, value)
