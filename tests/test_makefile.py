"""`make` says which Python it needs before it installs anything."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def python_that(folder: Path, first: str) -> Path:
    """Make a command that is this Python, but for a statement that comes before any `-c` code."""
    command = folder / "python"
    command.write_text(
        "#!/bin/sh\n"
        f"if [ \"$1\" = -c ]; then exec \"{sys.executable}\" -c \"{first}; exec('''$2''')\"; fi\n"
        f'exec "{sys.executable}" "$@"\n'
    )
    command.chmod(0o755)
    return command


def made(folder: Path, python: Path | str) -> subprocess.CompletedProcess[str]:
    environment = folder / "environment"
    return subprocess.run(
        ["make", f"PYTHON={python}", f"VENV={environment}", f"{environment}/.made"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def assert_refused(done: subprocess.CompletedProcess[str], folder: Path, *parts: str) -> None:
    assert done.returncode != 0
    for part in parts:
        assert part in done.stderr
    assert not (folder / "environment").exists()


def test_a_python_that_is_too_old_is_named_with_its_version(tmp_path: Path) -> None:
    python = python_that(tmp_path, "import sys; sys.version_info = (3, 10, 4, 0)")
    done = made(tmp_path, python)
    assert_refused(done, tmp_path, f"{python} is Python 3.10.4, and 3.11 or newer is needed")


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert_refused(made(tmp_path, "python3.99"), tmp_path, "there is no 'python3.99' on the path")


def test_a_python_without_venv_is_named_with_the_remedy(tmp_path: Path) -> None:
    python = python_that(tmp_path, "import sys; sys.modules['ensurepip'] = None")
    done = made(tmp_path, python)
    assert_refused(done, tmp_path, f"{python} has no 'venv'", "python3-venv")


def test_a_python_that_will_do_gets_an_environment(tmp_path: Path) -> None:
    done = made(tmp_path, sys.executable)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "environment" / "bin" / "python").exists()
