"""`with model.pipe(...)` is found wherever a block may be: modules, sessions, functions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from nnsight_dsl import TransformersModel, install_import_hook
from tests.surface08.checkpoints import save

MODULE = """
def edited(model):
    with model.pipe("the [MASK] sat") as tracer:
        model.bert.encoder.layer[1].output[:] = 0
        records = tracer.result.save()
    return records


def plain(model):
    records = model.pipe("the [MASK] sat")
    return records
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return TransformersModel(save("fill-mask", tmp_path_factory.mktemp("bert")), task="fill-mask")


def expected(model: TransformersModel) -> object:
    with model.edit() as edited:
        model.bert.encoder.layer[1].output[:] = 0
    return edited.pipe("the [MASK] sat")


def test_in_a_module_of_the_import_hook(
    model: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipes_of_a_module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    handle = install_import_hook("pipes_of_a_module")
    try:
        module = importlib.import_module("pipes_of_a_module")
        assert module.edited(model) == expected(model)
        assert module.plain(model) == model.pipe("the [MASK] sat")
    finally:
        sys.modules.pop("pipes_of_a_module", None)
        handle.remove()


def test_in_a_session(model: TransformersModel) -> None:
    with model.session():
        with model.pipe("the [MASK] sat") as tracer:
            model.bert.encoder.layer[1].output[:] = 0
            records = tracer.result.save()
    assert records == expected(model)
