"""Which text a block is lowered from: the one that the running code was compiled from."""

from __future__ import annotations

import ast
import importlib
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, errors
from nnsight_dsl import intervene

X = torch.ones(1, 2)
NET = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
MODEL = NNsight(NET)

TEXT = """\
def run(model, x):
    with model.trace(x):
        model[1].output = model[1].output * 2
        out = model.output.save()
    return out
"""


def wanted(factor: float = 2) -> torch.Tensor:
    result: torch.Tensor = NET[2](NET[1](NET[0](X)) * factor)
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("edited_")]:
        del sys.modules[name]


def imported(folder: Path, name: str, path: Path) -> ModuleType:
    """Import a module from a text that is on disk alone, and in no string that is running."""
    (folder / f"{name}.py").write_text(path.read_text())
    importlib.invalidate_caches()
    return importlib.import_module(name)


def on_disk(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_text(text)
    return path


INDENT = " " * 8
EDITS = {
    "a number": lambda text: text.replace("* 2", "* 3"),
    "a name": lambda text: text.replace("[1]", "[0]"),
    "a line less": lambda text: text.replace("        model[1].output = model[1].output * 2\n", ""),
    "a line more": lambda text: text.replace(
        "        out", "        model[0].output[:] = 0\n        out"
    ),
    "a line more at the end": lambda text: text.replace(
        "    return", "        out[:] = 0\n    return"
    ),
    "another block there": lambda text: text.replace("[1]", "[0]") + text.replace("run", "moved"),
    "emptied": lambda text: "",
    "no Python": lambda text: text + "def (",
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_block_of_a_file_that_was_edited_in_it_is_refused(folder: Path, edit: str) -> None:
    module = imported(folder, f"edited_{list(EDITS).index(edit)}", on_disk(folder, TEXT))
    Path(str(module.__file__)).write_text(EDITS[edit](Path(folder / "text.txt").read_text()))
    with pytest.raises(errors.BlockNotFoundError) as caught:
        module.run(MODEL, X)
    line = caught.value.__traceback__
    while line is not None and line.tb_next is not None:
        line = line.tb_next
    assert line is not None
    assert (line.tb_frame.f_code.co_filename, line.tb_lineno) == (module.__file__, 2)
    assert "line 2" in str(caught.value)
    assert "; " in str(caught.value)


MOVES = {
    "a line above": lambda text: "\n" + text,
    "a function above": lambda text: f"def other(model, x):\n    pass\n\n\n{text}",
    "the same name above": lambda text: text.replace("* 2", "* 3") + "\n\n" + text,
    "a comment in it": lambda text: text.replace("* 2\n", "* 2  # twice\n"),
    "a line behind it": lambda text: text.replace("    return out", "    x = 1\n    return out"),
    "a decorator and another argument": lambda text: f"@staticmethod\n{text}".replace(
        "x)", "x, *a)", 1
    ),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_block_of_a_file_that_was_edited_beside_it_runs(folder: Path, move: str) -> None:
    module = imported(folder, f"edited_beside_{list(MOVES).index(move)}", on_disk(folder, TEXT))
    Path(str(module.__file__)).write_text(MOVES[move]((folder / "text.txt").read_text()))
    assert module.run(MODEL, X).equal(wanted())


def test_an_error_in_a_block_that_has_moved_is_at_the_line_that_was_compiled(folder: Path) -> None:
    wrong = TEXT.replace("    return", "        out.nothing\n    return")
    module = imported(folder, "edited_moved_error", on_disk(folder, wrong))
    Path(str(module.__file__)).write_text("\n\n" + (folder / "text.txt").read_text())
    with pytest.raises(AttributeError) as caught:
        module.run(MODEL, X)
    assert caught.traceback[-1].lineno + 1 == 5


def test_a_file_that_was_edited_after_a_wrapper_was_made_runs_as_it_was(folder: Path) -> None:
    module = imported(folder, "edited_later", on_disk(folder, TEXT))
    model = NNsight(NET)
    Path(str(module.__file__)).write_text((folder / "text.txt").read_text().replace("* 2", "* 3"))
    assert module.run(model, X).equal(wanted())


def test_a_file_that_was_edited_after_its_first_block_runs_as_it_was(folder: Path) -> None:
    both = TEXT + TEXT.replace("run", "again").replace("* 2", "* 4")
    module = imported(folder, "edited_between", on_disk(folder, both))
    assert module.run(MODEL, X).equal(wanted())
    Path(str(module.__file__)).write_text((folder / "text.txt").read_text().replace("* 4", "* 5"))
    assert module.again(MODEL, X).equal(wanted(4))


def test_what_linecache_holds_from_before_an_edit_is_used(folder: Path) -> None:
    module = imported(folder, "edited_traced", on_disk(folder, TEXT))
    linecache.getlines(str(module.__file__))
    Path(str(module.__file__)).write_text((folder / "text.txt").read_text().replace("* 2", "* 3"))
    assert module.run(MODEL, X).equal(wanted())


def test_a_module_that_was_edited_and_reloaded_runs_as_it_is(folder: Path) -> None:
    module = imported(folder, "edited_reloaded", on_disk(folder, TEXT))
    assert module.run(MODEL, X).equal(wanted())
    changed = (folder / "text.txt").read_text().replace("* 2", "* 3.5")
    Path(str(module.__file__)).write_text(changed)
    assert importlib.reload(module).run(MODEL, X).equal(wanted(3.5))


def test_an_intervention_is_that_which_was_defined(folder: Path) -> None:
    text = (
        "from nnsight_dsl import intervene\n"
        "@intervene\n"
        "def scaled(model):\n"
        "    model[1].output = model[1].output * 2\n"
        "    return model.output\n"
    )
    module = imported(folder, "edited_intervention", on_disk(folder, text))
    Path(str(module.__file__)).write_text((folder / "text.txt").read_text().replace("* 2", "* 3"))
    assert module.scaled.run(MODEL, X).equal(wanted())


def test_two_texts_of_one_name_run_each_as_it_is() -> None:
    texts = [
        f"with model.trace(x):\n    a = model[{i}].output.save()\n    {pad}\n"
        for i, pad in ((0, "pass"), (1, "pass"), (0, "b = 1"))
    ]
    for i, text in zip((0, 1, 0), texts, strict=True):
        names: dict[str, Any] = {"model": MODEL, "x": X}
        exec(compile(text, "<generated>", "exec"), names)
        assert names["a"].equal(NET[: i + 1](X))


def test_a_text_beside_another_of_the_same_shape_is_not_mistaken_for_it() -> None:
    other = "with model.trace(x):\n    a = model[0].output.save()\n"

    def run(*texts: str) -> Any:
        names: dict[str, Any] = {"model": MODEL, "x": X}
        exec(compile(texts[0], "<beside another>", "exec"), names)
        return names["a"]

    assert run(other.replace("[0]", "[1]"), other).equal(NET[:2](X))
    assert run(other, other.replace("[0]", "[1]")).equal(NET[:1](X))


def test_a_text_that_only_looks_alike_is_refused() -> None:
    text = "with model.trace(x):\n    gone = model[{}].output.save()\n"
    code = compile(text.format(0), "<gone>", "exec")
    linecache.cache["<gone>"] = (1, None, text.format(1).splitlines(True), "")
    try:
        with pytest.raises(errors.BlockNotFoundError, match=r"line 1 of '<gone>'.*; "):
            exec(code, {"model": MODEL, "x": X})
    finally:
        del linecache.cache["<gone>"]


@pytest.mark.parametrize("mode", ["exec", "single"])
@pytest.mark.parametrize("optimize", [-1, 0, 1, 2])
def test_however_a_text_was_compiled_it_is_found(mode: str, optimize: int) -> None:
    text = "with model.trace(x):\n    assert x is not None\n    a = model[0].output.save()\n    1\n"
    names: dict[str, Any] = {"model": MODEL, "x": X}
    exec(compile(text, "<compiled>", mode, optimize=optimize), names)
    assert names["a"].equal(NET[:1](X))


def test_a_text_inside_a_function_that_was_made_for_it_is_found() -> None:
    # as by `%%timeit`
    text = "with model.trace(x):\n    a = model[0].output.save()\n    result.append(a)\n"
    tree = ast.parse("def inner():\n    pass\ninner()")
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = ast.parse(text).body
    result: list[Any] = []
    exec(compile(tree, "<timed>", "exec"), {"model": MODEL, "x": X, "result": result})
    assert result[0].equal(NET[:1](X))


def test_an_assert_in_a_block_explains_itself() -> None:
    expected = 7
    with pytest.raises(AssertionError) as caught, MODEL.trace(X):
        seen = MODEL[0].output.shape[1]
        assert seen == expected
    assert "assert 2 == 7" in str(caught.value)


def test_an_assert_of_an_access_explains_itself() -> None:
    with pytest.raises(AssertionError) as caught, MODEL.trace(X):
        assert MODEL[0].output.shape[1] == 8 and MODEL[1].output is None
    assert "assert (2 == 8" in str(caught.value)


@intervene
def _checked(model: Any) -> Any:
    assert model[0].output.shape[1] == 9
    return model.output


def test_an_assert_in_an_intervention_explains_itself() -> None:
    with pytest.raises(AssertionError, match="assert 2 == 9"):
        _checked.run(MODEL, X)


def test_a_block_behind_very_much_other_code_is_found(folder: Path) -> None:
    # the numbers of names and constants no longer fit into one byte
    above = "".join(f"name_{i} = {i}.5\n" for i in range(600))
    text = (
        f"{above}with model.trace(x):\n    out = model[0].output.save() if x is not {{}} else 7\n"
    )
    names: dict[str, Any] = {"model": MODEL, "x": X}
    path = on_disk(folder, text)
    exec(compile(f"# first\n{path.read_text()}", str(path), "exec"), names)
    assert names["out"].equal(NET[:1](X))
