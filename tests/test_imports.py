"""No two files import each other, directly or by way of others, for types or inside of functions.

import-linter keeps the layers; this looks at every file.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("nnsight_dsl", "runtime", "transforms")


def files() -> dict[str, Path]:
    """Return the package's files by the names of their modules."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*path.relative_to(ROOT).with_suffix("").parts]
            if parts[0] != "nnsight_dsl":
                parts.insert(0, "nnsight_dsl")
            elif parts[1] in FOLDERS:
                continue  # the links, where Python follows them
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join(parts)] = path
    return found


def imported(text: str, package: str, known: set[str]) -> Iterator[str]:
    """Iterate over the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: package.count(".") + 2 - node.level]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known or base in known:
                    yield inner if inner in known else base


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle of imports, in order; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle() -> None:
    known = files()
    assert len(known) > 150
    graph = {}
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        text = path.read_text(encoding="utf-8")
        graph[module] = {one for one in imported(text, package, {*known}) if one != module}
    assert circle_in(graph) == []


@pytest.mark.parametrize(
    "text",
    [
        "from .b import x",
        "from . import b",
        "import p.b",
        "from p.b import x",
        "if TYPE_CHECKING:\n    from p.b import x",
        "def f():\n    from p import b",
    ],
)
def test_every_form_of_import_is_seen(text: str) -> None:
    known = {"p", "p.a", "p.b"}
    graph = {"p.a": {*imported(text, "p", known)}, "p.b": {*imported("import p.a", "p", known)}}
    assert {*circle_in(graph)} == {"p.a", "p.b"}


def missing_in(text: str, known: set[str]) -> Iterator[str]:
    """Iterate over the names that a file takes from our modules and that are not there.

    The imports are those of the whole file, also the ones in functions, so nothing but our own
    modules is imported for this.
    """
    tree = ast.parse(text)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    modules[alias.asname or alias.name] = inner
                elif not hasattr(import_module(node.module), alias.name):
                    yield f"{node.lineno}: {inner}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and not hasattr(import_module(module), node.attr):
                yield f"{node.lineno}: {module}.{node.attr}"


def test_what_tests_and_benchmarks_take_from_the_package_is_there() -> None:
    """mypy reads the package alone, and an attribute that moved shows there at run time only."""
    known = set(files())
    folders = ("tests", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 200
    missing = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if not {"vllm", "cases"} & {*path.parts}  # cases are texts for the linter
        and (found := [*missing_in(path.read_text(encoding="utf-8"), known)])
    }
    assert not missing


def test_a_name_that_is_not_there_is_found() -> None:
    known = {"nnsight_dsl.errors", "nnsight_dsl"}
    text = "from nnsight_dsl import errors\nfrom nnsight_dsl.errors import Nowhere\nerrors.gone\n"
    assert [*missing_in(text, known)] == [
        "2: nnsight_dsl.errors.Nowhere",
        "3: nnsight_dsl.errors.gone",
    ]
