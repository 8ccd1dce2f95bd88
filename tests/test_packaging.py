"""The package list, the folders and the links agree, and importing stays light."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_FOLDERS: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]
LINKED_FOLDERS = sorted(set(PACKAGE_FOLDERS.values()) - {"nnsight_dsl"})
HEAVY = {"accelerate", "libcst", "torch", "transformers", "vllm"}
NOT_SHIPPED = {"__pycache__", "build", "dist"}
SHIPPED_DOT_NAMES = {".ci", ".gitignore"}

# A path below one of the places where people and build machines keep checkouts.
MACHINE_PATH = re.compile(
    r"(?<![\w./~-])(?:/(?:builds|home|root|Users|work|workspace)/|[A-Z]:\\Users\\)\w"
)


def folders_with_python_files(folder: Path) -> Iterator[Path]:
    for parent, names, files in os.walk(folder):  # os.walk does not enter the links
        names[:] = [name for name in names if name not in NOT_SHIPPED]
        if any(name.endswith(".py") for name in files):
            yield Path(parent)


def packages_on_disk() -> dict[str, Path]:
    return {
        ".".join([package, *found.relative_to(ROOT / folder).parts]): found
        for package, folder in PACKAGE_FOLDERS.items()
        for found in folders_with_python_files(ROOT / folder)
    }


def shipped_files() -> Iterator[Path]:
    for parent, names, files in os.walk(ROOT):
        names[:] = [name for name in names if is_shipped(name)]
        yield from (Path(parent, name) for name in files if is_shipped(name))


def is_shipped(name: str) -> bool:
    if name.startswith("."):
        return name in SHIPPED_DOT_NAMES
    return name not in NOT_SHIPPED and not name.endswith((".egg-info", ".pyc"))


def text_of(path: Path) -> str:
    """Return the file's text, or nothing where it is not text."""
    content = path.read_bytes()
    try:
        return "" if b"\0" in content else content.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_package_list_names_every_folder_with_python_files():
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages_on_disk())
    assert len(set(listed)) == len(listed)


def test_every_package_has_an_init_file():
    missing = [
        name for name, path in packages_on_disk().items() if not (path / "__init__.py").is_file()
    ]
    assert missing == []


def test_each_folder_outside_the_package_is_linked_into_it():
    links = {
        path.name: path.readlink() for path in (ROOT / "nnsight_dsl").iterdir() if path.is_symlink()
    }
    assert links == {folder: Path("..", folder) for folder in LINKED_FOLDERS}
    assert {f"nnsight_dsl.{folder}" for folder in LINKED_FOLDERS} == set(PACKAGE_FOLDERS) - {
        "nnsight_dsl"
    }


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "nnsight_dsl" / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["nnsight_dsl"]


@pytest.mark.parametrize("module", ["nnsight_dsl", "nnsight_dsl.transforms"])
def test_import_loads_nothing_heavy(module):
    done = run_python(f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["intervene", "sweep"])
def test_a_public_name_is_no_module_when_the_module_was_imported_first(module):
    done = run_python(
        f"import nnsight_dsl.{module}; from nnsight_dsl import intervene, sweep; "
        "print(type(intervene).__name__, type(sweep).__name__)"
    )
    assert done.stdout.split() == ["function", "function"], done.stderr


@pytest.mark.parametrize("folder", LINKED_FOLDERS)
def test_a_folder_imported_by_its_own_name_says_how_to_import_it(folder):
    done = run_python(f"import {folder}")
    assert done.returncode != 0
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert last_line.endswith(f"; import nnsight_dsl.{folder}")


def test_every_dependency_is_pinned_once():
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    assert len(versions) == len(pins)
    for requirement in map(Requirement, wanted):
        (pin,) = versions[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_no_shipped_text_names_a_path_of_one_machine():
    here = re.compile(rf"(?<![\w./~-]){re.escape(str(ROOT))}\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in shipped_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if MACHINE_PATH.search(line) or here.search(line)
    ]
    assert found == []


# Put together here, because this file is searched as well.
@pytest.mark.parametrize("place", ["/{}/", '"/{}/', "(C:\\{}\\"])
def test_a_path_of_one_machine_is_recognised(place):
    assert MACHINE_PATH.search(f"see {place.format('Users')}me")


@pytest.mark.parametrize(
    "path", ["https://host/home/x", "../home/x", "transforms/root/x", "/usr/bin/env", "A:\\nb"]
)
def test_other_paths_are_not_taken_for_one(path):
    assert not MACHINE_PATH.search(path)
