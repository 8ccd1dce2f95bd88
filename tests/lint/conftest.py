"""What tests of the linter share: a cache folder of their own, and the command line in-process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nnsight_dsl.cli import main

WRONG = """\
with model.trace("Hello"):
    outer = model.transformer.h[0].output.save()
    inner = model.transformer.h[0].mlp.output.save()
"""
RIGHT = """\
with model.trace("Hello"):
    outer = model.transformer.h[0].output.save()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    found = tmp_path / "work"
    found.mkdir()
    monkeypatch.chdir(found)
    return found


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command; return its exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
