"""A run keeps no activation once it is over, at any entry point, without the garbage collector.

A reference cycle frees its activations only when the collector comes by, which counts objects and
not bytes: some hundred runs can hold gigabytes by then.
"""

from __future__ import annotations

import importlib
import itertools
import json
import linecache
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nnsight_dsl
from tests.language.freeing import (
    FUNCTIONS,
    INTERVENTIONS,
    TIMES,
    Counting,
    function_text,
    intervention_text,
    left_by,
    module_text,
    script_text,
)
from tests.language.test_entry_points import ROOT, caching, environment

NONE_LEFT = [0] * TIMES

each_block = pytest.mark.parametrize("name", FUNCTIONS)
_numbers = itertools.count()


def compiled(text: str) -> Any:
    filename = f"<freeing {next(_numbers)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    return compile(text, filename, "exec", dont_inherit=True)


def user_of(text: str) -> Any:
    names: dict[str, Any] = {"__name__": "freeing"}
    exec(compiled(text), names)
    return names["user"]


@each_block
def test_a_function_of_a_plain_script(name: str) -> None:
    assert left_by(user_of(function_text(name))) == NONE_LEFT


@each_block
def test_the_top_level_of_a_plain_script(name: str) -> None:
    code = compiled(module_text(name))

    def run(model: Any) -> None:
        names = {"__name__": "__main__", "model": model}
        exec(code, names)
        # a fit keeps the globals of the program that it is of
        names.clear()

    assert left_by(run) == NONE_LEFT


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("modules")
    with caching(), nnsight_dsl.install_import_hook():
        sys.path.insert(0, str(folder))
        yield folder


@each_block
def test_a_module_under_the_import_hook(name: str, hooked: Path) -> None:
    module = f"nnsight_freeing_{[*FUNCTIONS].index(name)}"
    (hooked / f"{module}.py").write_text(function_text(name))
    importlib.invalidate_caches()
    try:
        assert left_by(importlib.import_module(module).user) == NONE_LEFT
    finally:
        sys.modules.pop(module, None)


@pytest.mark.parametrize("alone", [True, False], ids=["by itself", "in a block"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention(name: str, alone: bool) -> None:
    assert left_by(user_of(intervention_text(name, alone=alone))) == NONE_LEFT


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, colors="nocolor")
    yield shell
    shell.restore_sys_module_state()


@each_block
def test_a_cell_of_a_notebook(name: str, shell: InteractiveShell) -> None:
    with Counting() as counting:
        for _ in range(TIMES):
            kept = {*shell.user_ns, "model"}
            shell.user_ns["model"] = counting.model
            shell.run_cell(module_text(name)).raise_error()
            for found in {*shell.user_ns} - kept:
                del shell.user_ns[found]
            counting.count()
    assert counting.left == NONE_LEFT


@pytest.mark.parametrize("way", [[], ["-m", "nnsight_dsl", "run"]], ids=["plain", "lowered"])
def test_a_script_of_its_own(way: list[str], tmp_path: Path) -> None:
    script, found = tmp_path / "freeing_script.py", tmp_path / "left.json"
    script.write_text(script_text())
    subprocess.run(
        [sys.executable, *way, str(script), str(found)], cwd=ROOT, env=environment(), check=True
    )
    left = json.loads(found.read_text())
    assert len(left) == 2 * len(FUNCTIONS)
    assert {name: counts for name, counts in left.items() if counts != NONE_LEFT} == {}
