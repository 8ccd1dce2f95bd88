"""Functions of at most 60 lines, modules of at most 500, classes of at most 25 public methods."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

INLINED = {
    "runtime/driving/inlining.py: Inlined.drive",
    "runtime/tapping/tapped_class.py: _call_of",
    "runtime/tapping/tapped_class.py: _call_of.__call__",
    "nnsight_dsl/tracing/fast_path.py: run_alone",
}
"""The hot path of a read, of a visit and of an entry, each in one Python frame on purpose: to move
a part of one into a function makes `tests/runtime/driving/test_frames.py` fail."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> Iterator[tuple[str, str]]:
    for folder in ("nnsight_dsl", "runtime", "transforms"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(("nnsight_dsl/runtime/", "nnsight_dsl/transforms/")):
                yield name, path.read_text(encoding="utf-8")


def named(node: ast.AST, above: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Iterate over the functions and classes in a tree, by qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (Function, ast.ClassDef)):
            name = f"{above}{child.name}"
            yield name, child
            yield from named(child, f"{name}.")
        else:
            yield from named(child, above)


def is_table(node: Function) -> bool:
    """Return whether a function is a `match` with nothing but short statements around it."""
    return any(isinstance(one, ast.Match) for one in node.body)


def test_functions() -> None:
    found = {
        f"{file}: {name}"
        for file, text in files()
        for name, node in named(ast.parse(text))
        if isinstance(node, Function)
        and not is_table(node)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 60
    }
    assert found == INLINED


def test_modules() -> None:
    assert not {file: text.count("\n") for file, text in files() if text.count("\n") > 500}


def test_classes() -> None:
    counts = {
        f"{file}: {name}": sum(
            isinstance(one, Function) and not one.name.startswith("_") for one in node.body
        )
        for file, text in files()
        for name, node in named(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    assert not {name: count for name, count in counts.items() if count > 25}
