"""The switch: a script, a package, pytest, a notebook, the environment, and child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnsight_dsl import compat
from nnsight_dsl.compat import switching
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
STARTUP = ROOT / "nnsight_dsl_startup.pth"

MODEL = """\
import sys
import nnsight, torch
model = nnsight.NNsight(torch.nn.Linear(2, 2))
with model.trace(torch.ones(1, 2)):
    shape = model.output.shape.save()
print(nnsight.__version__, tuple(shape), sys.argv[1:])
"""
SAYS = "0.8.1 (1, 2) []\n"

POOL = """\
import multiprocessing, os, sys
def version(number):
    import nnsight
    return nnsight.__version__, nnsight.NNsight.__module__
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(sorted(set(pool.map(version, range(4)))))
"""


def python(*arguments: str, cwd: Path, status: int = 0, **variables: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    kept.pop(switching.VARIABLE, None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if status else "")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "__main__.py").write_text(f"from .part import NAME\n{MODEL}print(NAME)\n")
    (tmp_path / "mine" / "part.py").write_text("import nnsight\nNAME = nnsight.__name__\n")
    (tmp_path / "script.py").write_text(MODEL)
    (tmp_path / "pool.py").write_text(POOL)
    return tmp_path


def test_a_script_by_the_command_line(package: Path) -> None:
    run = ("-m", "nnsight_dsl", "run")
    assert python(*run, "--as-nnsight", "script.py", cwd=package) == SAYS
    said = python(*run, "--as-nnsight=0.6", "script.py", "-m", "--as-nnsight", cwd=package)
    assert said == "0.6.0 (1, 2) ['-m', '--as-nnsight']\n"
    assert "script, or a module by -m" in python(*run, "--as-nnsight", cwd=package, status=2)


def test_a_package_by_the_command_line(package: Path) -> None:
    said = python(
        "-m", "nnsight_dsl", "run", "--as-nnsight", "-m", "mine", "--flag", "x", cwd=package
    )
    assert said == "0.8.1 (1, 2) ['--flag', 'x']\nnnsight\n"
    assert "no_such" in python("-m", "nnsight_dsl", "run", "-m", "no_such", cwd=package, status=1)


def test_a_notebook_by_its_first_cell(package: Path) -> None:
    text = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        "shell = Shell.instance()\n"
        "shell.run_cell('%load_ext nnsight_dsl.compat')\n"
        "shell.run_cell('from nnsight import NNsight; print(NNsight.__name__)')\n"
    )
    assert python("-c", text, cwd=package) == "NNsight\n"


def test_a_suite_of_pytest_by_an_option(package: Path) -> None:
    # conftest.py imports it, too
    (package / "conftest.py").write_text("import nnsight\nVERSION = nnsight.__version__\n")
    (package / "test_it.py").write_text(
        "import subprocess, sys\n"
        "def test_it():\n"
        "    import nnsight\n"
        "    assert nnsight.__version__ == '0.6.0'\n"
        "    text = 'import nnsight; assert nnsight.__version__ == \"0.6.0\"'\n"
        "    subprocess.run([sys.executable, '-c', text], check=True)\n"
    )
    call = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in python(*call, "--as-nnsight=0.6", "test_it.py", cwd=package)
    (package / "pytest.ini").write_text("[pytest]\naddopts = --as-nnsight\n")
    assert "'0.8.1'" in python(*call, cwd=package, status=1)


def test_the_environment_variable_by_the_startup_file(package: Path) -> None:
    line = STARTUP.read_text()
    assert line.startswith("import ")
    assert line.count("\n") == 1
    report = "import sys; print('torch' in sys.modules, 'nnsight_dsl' in sys.modules)\n"
    switched = f"{line}{report}import nnsight; print(nnsight.__version__)"
    on = {switching.VARIABLE: "1"}
    assert python("-c", switched, cwd=package, **on) == "False True\n0.8.1\n"
    on = {switching.VARIABLE: "0.6"}
    assert python("-c", switched, cwd=package, **on) == "False True\n0.6.0\n"
    for value in ("0", ""):
        said = python("-c", line + report, cwd=package, **{switching.VARIABLE: value})
        assert said == "False False\n"
    wrong = python("-c", line, cwd=package, status=1, **{switching.VARIABLE: "0.7"})
    assert "NNSIGHT_DSL_AS_NNSIGHT='0.7' is not known" in wrong


def test_spawned_workers_and_subprocesses_inherit_it(package: Path) -> None:
    run = ("-m", "nnsight_dsl", "run", "--as-nnsight")
    assert python(*run, "pool.py", cwd=package) == "[('0.8.1', 'nnsight_dsl.compat.as_08')]\n"
    # of the two ways, the one of a checkout, from another folder
    elsewhere = package / "elsewhere"
    elsewhere.mkdir()
    text = "import subprocess, sys\nsubprocess.run([sys.executable, sys.argv[1]], check=True)\n"
    (package / "parent.py").write_text(text)
    assert python(*run, "../parent.py", "../script.py", cwd=elsewhere) == ("0.8.1 (1, 2) []\n")


def test_a_child_that_asks_for_nothing_imports_no_torch(package: Path) -> None:
    text = "import sys; print('torch' in sys.modules, 'nnsight_dsl.compat' in sys.modules)"
    folder = ROOT / "nnsight_dsl" / "compat" / "startup"
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), switching.VARIABLE: "1"}
    assert python("-c", text, cwd=package, **paths) == "False True\n"
    text = f"import sys; print({str(folder)!r} in sys.path)"
    assert python("-c", text, cwd=package, **paths) == "False\n"


def test_the_sitecustomize_that_it_hides_is_run(package: Path) -> None:
    (package / "sitecustomize.py").write_text("import sys; sys.was_customized = True\n")
    folder = ROOT / "nnsight_dsl" / "compat" / "startup"
    paths = os.pathsep.join([str(folder), str(package), str(ROOT)])
    on = {"PYTHONPATH": paths, switching.VARIABLE: "1"}
    assert python("-c", "import sys; print(sys.was_customized)", cwd=ROOT, **on) == "True\n"


def test_the_real_one_that_is_imported_already_is_an_error(monkeypatch) -> None:
    import types

    monkeypatch.setitem(sys.modules, "nnsight", types.ModuleType("nnsight"))
    with pytest.raises(ImportError, match="already imported"):
        compat.install()
