"""Each construct means the same through every entry point, and what is refused is refused in all.

The oracle is plain Python, on values that plain hooks have recorded. An entry point that needs a
process of its own runs all constructs in it at once.
"""

import itertools
import linecache
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nnsight_dsl
from nnsight_dsl.runtime.machines.machine import Machine
from tests.language.constructs import ALL, CARRIED, MEANT, REFUSALS, REFUSED, Construct
from tests.language.outcomes import (
    Modules,
    Outcome,
    assert_same_outcome,
    expected_of,
    outcome_of,
    script_of_all,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "language.md"
PLACED = [row for row in MEANT if row.text]
IN_BLOCK = [row for row in MEANT if row.body]

_Names = dict[str, Any]
_numbers = itertools.count()


def by_name(rows: Sequence[Construct]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


@cache
def expected(row: Construct) -> Outcome:
    found = expected_of(row)
    assert found.error is None, found.error
    assert found.names or found.log
    return found


def run_plainly(text: str, names: _Names) -> None:
    """Run a text as a script's `__main__`, or code under `exec`, is run."""
    filename = f"<construct {next(_numbers)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec", dont_inherit=True), names)


def environment() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


class Elsewhere:
    """A Python process that writes a file of outcomes."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self._out = out
        self._log = out.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environment(), stdout=log, stderr=log
            )
        self._found: Any = None

    def found(self) -> Any:
        if self._found is None:
            assert self._process.wait() == 0, self._log.read_text()
            self._found = pickle.loads(self._out.read_bytes())
        return self._found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Elsewhere]]:
    """The processes, which run beside the tests that need none of them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    script = folder / "all_constructs.py"
    script.write_text(script_of_all())
    plain, lowered, cached = folder / "plain", folder / "lowered", folder / "cached"
    with caching(), nnsight_dsl.install_import_hook():
        modules = Modules(folder)
        for row in MEANT:
            outcome_of(row, partial(modules.run, modules.write(row, row.module_text())))
    code = (
        f"from tests.language.outcomes import run_cached as r; r({str(folder)!r}, {str(cached)!r})"
    )
    started = {
        "plain": Elsewhere(plain, str(script), str(plain)),
        "lowered": Elsewhere(lowered, "-m", "nnsight_dsl", "run", str(script), str(lowered)),
        "cached": Elsewhere(cached, "-c", code),
    }
    yield started
    for process in started.values():
        process.end()


# the page and the table


def rows_of_the_page() -> list[tuple[str, str]]:
    """The name and the third column of each row of the tables in `docs/language.md`."""
    found = re.findall(r"^\| (.+?) +\| `.+` +\| (.+?) +\|$", PAGE.read_text(), re.MULTILINE)
    return [(name.replace("\\|", "|"), how) for name, how in found]


def test_the_page_has_a_line_for_each_construct_and_none_besides():
    assert [name for name, _ in rows_of_the_page()] == [row.name for row in ALL]


@by_name(ALL)
def test_the_page_says_how_a_construct_is_served(row: Construct) -> None:
    how = dict(rows_of_the_page())[row.name]
    if row.how == REFUSED:
        assert how.startswith("refused: ")
        assert row.remedy in how
    else:
        assert how == row.how


@by_name(MEANT)
def test_a_construct_is_carried_where_the_table_says_so(
    row: Construct, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    request = Machine.request

    def counted(machine: Machine, wanted: Any) -> Any:
        asked.append(wanted)
        return request(machine, wanted)

    monkeypatch.setattr(Machine, "request", counted)
    assert outcome_of(row, partial(run_plainly, row.module_text())).error is None
    assert bool(asked) == (row.how == CARRIED)


# in this process


@by_name(MEANT)
def test_a_construct_in_a_plain_script(row: Construct) -> None:
    found = outcome_of(row, partial(run_plainly, row.module_text()))
    assert_same_outcome(found, expected(row))


@by_name(IN_BLOCK)
def test_a_construct_in_a_function_of_a_plain_script(row: Construct) -> None:
    found = outcome_of(row, partial(run_plainly, row.function_text()))
    assert_same_outcome(found, expected(row))


# an element of a tuple is set in the block itself only
@by_name([row for row in IN_BLOCK if not row.oracle])
def test_a_construct_with_everything_carried(row: Construct) -> None:
    text = row.carried_text().replace(".save()", "")
    assert_same_outcome(outcome_of(row, partial(run_plainly, text)), expected(row))


@by_name(IN_BLOCK)
def test_a_construct_in_an_intervention_run_by_itself(row: Construct) -> None:
    text = row.intervention_text(alone=True)
    assert_same_outcome(outcome_of(row, partial(run_plainly, text)), expected(row))


@by_name(MEANT)
def test_a_construct_in_an_intervention_called_in_a_block(row: Construct) -> None:
    text = row.intervention_text(alone=False)
    if row.body:
        # what is returned is saved as a whole
        text = text.replace(".save()", "")
    assert_same_outcome(outcome_of(row, partial(run_plainly, text)), expected(row))


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modules]:
    with caching(), nnsight_dsl.install_import_hook():
        yield Modules(tmp_path_factory.mktemp("modules"))


@contextmanager
def caching() -> Iterator[None]:
    """Let compiled modules be written, as by default, and put `sys.path` back."""
    path, wanted = [*sys.path], sys.dont_write_bytecode
    sys.dont_write_bytecode = False
    yield
    sys.dont_write_bytecode = wanted
    sys.path[:] = path


def imported(modules: Modules, row: Construct, text: str, kind: str = "") -> Outcome:
    name = modules.write(row, text, kind)
    found = outcome_of(row, partial(modules.run, name))
    (cached,) = (modules.folder / "__pycache__").glob(f"{name}.*.pyc")
    assert "nnsight" in cached.name.removeprefix(name)
    return found


@by_name(MEANT)
def test_a_construct_in_an_imported_module(row: Construct, modules: Modules) -> None:
    assert_same_outcome(imported(modules, row, row.module_text()), expected(row))


@by_name(IN_BLOCK)
def test_a_construct_in_a_function_of_an_imported_module(row: Construct, modules: Modules) -> None:
    found = imported(modules, row, row.function_text(), "function_")
    assert_same_outcome(found, expected(row))


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, colors="nocolor")
    yield shell
    shell.restore_sys_module_state()


def run_cell(shell: InteractiveShell, text: str, names: _Names) -> None:
    shell.user_ns.update(names)
    result = shell.run_cell(text)
    names.update(shell.user_ns)
    result.raise_error()


@by_name(MEANT)
def test_a_construct_in_a_cell(row: Construct, shell: InteractiveShell, capsys: Any) -> None:
    found = outcome_of(row, partial(run_cell, shell, row.module_text()))
    assert_same_outcome(found, expected(row))


# in a process of its own


@by_name(MEANT)
def test_a_construct_in_a_script_of_its_own(
    row: Construct, elsewhere: dict[str, Elsewhere]
) -> None:
    assert_same_outcome(elsewhere["plain"].found()[row.name], expected(row))


@by_name(MEANT)
def test_a_construct_in_a_script_lowered_beforehand(
    row: Construct, elsewhere: dict[str, Elsewhere]
) -> None:
    assert_same_outcome(elsewhere["lowered"].found()[row.name], expected(row))


# a decorated function is lowered in the process that calls it, and kept for that process only
CACHED = [row for row in MEANT if "@intervene" not in f"{row.name}{row.before}{row.text}"]


@by_name(CACHED)
def test_a_construct_in_a_cached_module(row: Construct, elsewhere: dict[str, Elsewhere]) -> None:
    found, _ = elsewhere["cached"].found()
    assert_same_outcome(found[row.name], expected(row))


def test_cached_modules_need_no_libcst(elsewhere: dict[str, Elsewhere]) -> None:
    _, loading = elsewhere["cached"].found()
    assert set(loading) & {row.name for row in CACHED} == set()


# refusals


def assert_refused(found: Outcome, row: Construct) -> None:
    assert found.error is not None
    kind, message, line = found.error
    assert kind == "UnsupportedSyntaxError"
    assert row.remedy in message
    assert line is not None
    assert found.log == []


@by_name(REFUSALS)
def test_a_construct_is_refused_alike_at_every_entry_point(
    row: Construct,
    modules: Modules,
    shell: InteractiveShell,
    elsewhere: dict[str, Elsewhere],
    capsys: Any,
) -> None:
    text = row.module_text()
    plain = outcome_of(row, partial(run_plainly, text))
    assert_refused(plain, row)
    name = modules.write(row, text)
    ways = {
        "import hook": outcome_of(row, partial(modules.run, name)),
        "import hook, cached": outcome_of(row, partial(modules.run, name)),
        "cell": outcome_of(row, partial(run_cell, shell, text)),
        "script": elsewhere["plain"].found()[row.name],
        "run": elsewhere["lowered"].found()[row.name],
    }
    for way, found in ways.items():
        assert_refused(found, row)
        assert found.error is not None
        assert plain.error is not None
        # the line is counted in another file
        assert without_place(found.error) == without_place(plain.error), way


def without_place(error: tuple[str, str, int | None]) -> tuple[str, str]:
    return error[0], re.sub(r" \(.*, line \d+\)$", "", error[1])


@by_name([row for row in REFUSALS if row.refused_alone])
def test_a_construct_is_refused_when_a_function_is_decorated(row: Construct) -> None:
    assert_refused(outcome_of(row, partial(run_plainly, row.refused_alone)), row)
