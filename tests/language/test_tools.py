"""Debuggers, coverage, warnings, pickles, notebooks and the command line see the user's code."""

import contextlib
import importlib
import inspect
import io
import json
import linecache
import multiprocessing
import os
import pdb
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import dedent
from types import FrameType
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nnsight_dsl
from nnsight_dsl import NNsight, compat, intervene, save
from nnsight_dsl.blocks.import_hook import BlockLoader
from nnsight_dsl.errors import UnsupportedSyntaxError
from nnsight_dsl.runtime import errors as runtime_errors
from nnsight_dsl.studies.explain import explain, mermaid, programs_in, rows_of
from nnsight_dsl.transforms.prefilter import may_hold_blocks
from tests.language import parts, samples
from tests.models import assert_same
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).name


@pytest.fixture
def model() -> NNsight:
    return NNsight(parts.Stack(11))


@pytest.fixture
def x() -> torch.Tensor:
    return samples.new_input()


def layer_output(number: int, factor: float = 1) -> torch.Tensor:
    """What a layer of the stack returns in a plain run."""
    value = samples.new_input() * factor
    for layer in parts.Stack(11).layers[: number + 1]:
        value = layer(value)
    return value


def line_of(function: Callable[..., Any], mark: str) -> int:
    """The line of a function that ends in a comment."""
    lines, first = inspect.getsourcelines(function)
    (found,) = (n for n, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))
    return first + found


def python(*arguments: str, cwd: Path = ROOT, status: int = 0) -> str:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


# debuggers

PROGRAM = """\
from tests.language import parts
globals().update(parts.namespace())
with model.trace(x):
    a = layers[0].output
    b = a + 1
    c = [layers[i].output for i in range(1, 3)]
    d = layers[4].output.save()
    e = 5
f = 6
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def debugged(program: Path, commands: str, *, at_breakpoint: bool = False) -> tuple[list[int], str]:
    """Drive pdb with commands; return the lines that it stopped at, and what it printed."""
    if at_breakpoint and sys.version_info >= (3, 13):
        # there `breakpoint()` stops at its own line, and before it at the one behind it
        commands = f"next\n{commands}"
    out = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO(commands), stdout=out, nosigint=True, readrc=False)
    debugger.use_rawinput = False
    code = compile(program.read_text(), str(program), "exec", dont_inherit=True)
    before, sys.breakpointhook = sys.breakpointhook, lambda: debugger.set_trace(sys._getframe(1))
    trace = sys.gettrace()
    try:
        if at_breakpoint:
            exec(code, {})
        else:
            debugger.run(code, {})
    except pdb.bdb.BdbQuit:
        pass
    finally:
        sys.breakpointhook = before
        sys.settrace(trace)
    stops = re.findall(rf"> {re.escape(str(program))}\((\d+)\)", out.getvalue())
    if at_breakpoint and sys.version_info >= (3, 13):
        del stops[0]
    return [int(stop) for stop in stops], out.getvalue()


def test_pdbs_next_steps_through_the_lines_of_a_block_across_accesses(program: Path) -> None:
    commands = f"break {program}:5\ncontinue\n" + "next\n" * 9 + "quit\n"
    stops, _ = debugged(program, commands)
    begin = stops.index(5)
    assert stops[begin : begin + 4] == [5, 6, 7, 8]


def test_pdbs_next_goes_on_behind_the_block(program: Path) -> None:
    commands = f"break {program}:8\ncontinue\n" + "next\n" * 9 + "quit\n"
    stops, _ = debugged(program, commands)
    assert 9 in stops[stops.index(8) :]


def test_pdbs_next_goes_on_behind_a_block_it_was_stopped_in(program: Path) -> None:
    program.write_text(program.read_text().replace("    e = 5", "    breakpoint()"))
    # the third one goes on into the frames that have called the program: no quitting there
    stops, _ = debugged(program, "next\n" * 3 + "continue\n", at_breakpoint=True)
    assert stops[-1] == 9


def test_pdb_shows_nothing_of_ours_at_the_end_of_a_block(program: Path) -> None:
    commands = f"break {program}:8\ncontinue\n" + "next\n" * 9 + "quit\n"
    _, said = debugged(program, commands)
    assert "nnsight_dsl" not in said


def test_pdbs_next_steps_over_a_block_from_outside(program: Path) -> None:
    text = program.read_text().replace("with model", "breakpoint()\nwith model")
    program.write_text(text)
    stops, _ = debugged(program, "next\nnext\nquit\n", at_breakpoint=True)
    assert stops[:2] == [4, 10]


def test_breakpoint_in_a_block_sees_its_names(program: Path) -> None:
    program.write_text(program.read_text().replace("    b = a", "    breakpoint()\n    b = a"))
    stops, said = debugged(program, "p a.shape\nnext\nnext\nup\nquit\n", at_breakpoint=True)
    assert "torch.Size([2, 4])" in said
    assert stops[:3] == [6, 7, 8]


@contextlib.contextmanager
def tracing(function: Any) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_trace_function_survives_a_block(model: NNsight, x: torch.Tensor) -> None:
    seen: list[tuple[str, int]] = []

    def local(frame: FrameType, event: str, _: Any) -> Any:
        seen.append((event, frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename == __file__ else None

    def user() -> None:
        with model.trace(x):  # entered
            h = model.layers[0].output.save()  # in the block
        after = 1  # after
        assert sys.gettrace() is trace

    with tracing(trace):
        user()
    lines = [line for event, line in seen if event == "line"]
    for mark in ("entered", "in the block", "after"):
        assert line_of(user, mark) in lines, mark


def test_a_trace_function_survives_a_block_that_fails(model: NNsight, x: torch.Tensor) -> None:
    lines: list[int] = []

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_name != "user":
            return None
        lines.append(frame.f_lineno)
        return trace

    def user() -> None:
        try:
            with model.trace(x):
                model.layers[0].output.nothing
        except AttributeError:
            caught = 1  # caught
        assert sys.gettrace() is trace

    with tracing(trace):
        user()
    assert line_of(user, "caught") in lines


def test_a_profile_function_survives_a_block(model: NNsight, x: torch.Tensor) -> None:
    def profile(frame: FrameType, event: str, arg: Any) -> None:
        pass

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        with model.trace(x):
            h = model.layers[0].output.save()
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(before)


# coverage

COVERED = """\
from tests.language import parts
globals().update(parts.namespace())
def user(flag):
    with model.trace(x):
        a = layers[0].output
        if flag:
            b = layers[1].output
        else:
            b = layers[2].output
        c = [h.sum()
             for h in (a, b)].save()
    return c
user(True)
"""


@pytest.mark.parametrize("is_imported", [False, True], ids=["plain", "imported"])
def test_coverage_reports_the_lines_of_a_block_that_were_run(
    tmp_path: Path, is_imported: bool
) -> None:
    (tmp_path / "covered.py").write_text(COVERED)
    hook = "import nnsight_dsl; nnsight_dsl.install_import_hook('covered')" if is_imported else ""
    (tmp_path / "main.py").write_text(f"{hook}\nimport covered\n")
    data = f"--data-file={tmp_path / 'data'}"
    python("-m", "coverage", "run", data, "--include=*/covered.py", "main.py", cwd=tmp_path)
    python("-m", "coverage", "json", data, "-o", "found.json", cwd=tmp_path)
    (found,) = json.loads((tmp_path / "found.json").read_text())["files"].values()
    assert found["missing_lines"] == [9]
    assert set(found["executed_lines"]) >= {1, 2, 3, 4, 5, 6, 7, 10, 12, 13}


# warnings and source


def test_a_warning_in_a_block_carries_the_users_line(model: NNsight, x: torch.Tensor) -> None:
    def user() -> None:
        with model.trace(x):
            model.layers[0].output
            warnings.warn("seen", UserWarning, stacklevel=1)  # here

    with pytest.warns(UserWarning, match="seen") as caught:
        user()
    (warning,) = caught
    assert (Path(warning.filename).name, warning.lineno) == (HERE, line_of(user, "here"))


def test_a_warning_of_a_library_names_the_block_that_called_it(
    model: NNsight, x: torch.Tensor
) -> None:
    def deprecated() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=2)

    def user() -> None:
        with model.trace(x):
            h = model.layers[0].output
            deprecated()  # here

    with pytest.warns(DeprecationWarning, match="old") as caught:
        user()
    (warning,) = caught
    assert (Path(warning.filename).name, warning.lineno) == (HERE, line_of(user, "here"))


def test_the_source_of_an_intervention_is_what_the_user_wrote() -> None:
    text = inspect.getsource(samples.scaled)
    assert text.startswith("@intervene\ndef scaled(model, layer: int, factor: float = 2.0):\n")
    assert text.endswith("    return torch.relu(model.output)\n")
    assert inspect.getdoc(samples.scaled) == "Scale what a layer returns."
    assert str(inspect.signature(samples.scaled)).startswith("(model, layer: int")


# interventions


def scaled_by(number: int, factor: float) -> torch.Tensor:
    stack = parts.Stack(11)
    with torch.no_grad():
        value = layer_output(number) * factor
        for layer in stack.layers[number + 1 :]:
            value = layer(value)
        return torch.relu(stack.head(value))


def shifted_by(number: int, amount: float) -> torch.Tensor:
    stack = parts.Stack(11)
    with torch.no_grad():
        value = layer_output(number) + amount
        for layer in stack.layers[number + 1 :]:
            value = layer(value)
        found: torch.Tensor = stack.head(value)
        return found


def test_an_intervention_with_a_comprehension_returns_what_it_says(
    model: NNsight, x: torch.Tensor
) -> None:
    @intervene
    def sums(model):
        found = [model.layers[i].output.sum() for i in range(2)]
        return "done", found

    word, found = sums.run(model, x)
    assert word == "done"
    assert_same([one.detach() for one in found], [layer_output(i).sum().detach() for i in range(2)])


def test_an_intervention_saves_any_object_when_it_is_called_in_a_block(
    model: NNsight, x: torch.Tensor
) -> None:
    @intervene
    def both(model):
        return [model.layers[0].output, model.layers[1].output].save()

    with model.trace(x):
        found = both(model)
    assert_same(found, [layer_output(0), layer_output(1)])


def test_an_asynchronous_intervention_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(UnsupportedSyntaxError, match="async"):

        @intervene
        async def user(model):
            return model.output


def test_an_argument_of_another_type_is_refused(model: NNsight, x: torch.Tensor) -> None:
    with pytest.raises(nnsight_dsl.InterventionArgumentError, match="argument 'layer' of scaled"):
        samples.scaled.run(model, x, layer="1")


def test_an_intervention_beside_a_block(model: NNsight, x: torch.Tensor) -> None:
    beside = [samples.shifting(2.0).bind(layer=1)]
    with model.trace(x, interventions=beside):
        y = model.output.save()
    assert_same(y.detach(), shifted_by(1, 2.0))


INTERVENTIONS: dict[str, tuple[Any, dict[str, Any], Callable[[], torch.Tensor]]] = {
    "module level": (samples.scaled, {"layer": 1}, lambda: scaled_by(1, 6.0)),
    "bound": (samples.scaled.bind(layer=2, factor=0.5), {}, lambda: scaled_by(2, 1.5)),
    "comprehension": (
        samples.shares,
        {},
        lambda: torch.relu(layer_output(0)) + torch.relu(layer_output(1)),
    ),
    "recursion": (samples.descending, {"layer": 1}, lambda: layer_output(2)),
    "closure": (samples.shifting(0.25), {"layer": 1}, lambda: shifted_by(1, 0.25)),
    "bound closure": (samples.shifting(-1.0).bind(layer=3), {}, lambda: shifted_by(3, -1.0)),
}


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_an_intervention_is_pickled(kind: str, model: NNsight, x: torch.Tensor) -> None:
    intervention, arguments, expected = INTERVENTIONS[kind]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(intervention, protocol))
        assert torch.allclose(again.run(model, x, **arguments), expected())
    # a copy of a copy, as when a process hands it on
    third = pickle.loads(pickle.dumps(again))
    assert inspect.getsource(third) == inspect.getsource(intervention)
    assert torch.allclose(third.run(model, x, **arguments), expected())


def test_interventions_run_in_another_process() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    given = [(intervention, arguments) for intervention, arguments, _ in INTERVENTIONS.values()]
    process = context.Process(target=samples.run_elsewhere, args=(given, queue))
    process.start()
    found = queue.get(timeout=PATIENCE)
    process.join()
    assert process.exitcode == 0
    for array, (_, _, expected) in zip(found, INTERVENTIONS.values(), strict=True):
        assert torch.allclose(torch.from_numpy(array), expected())


# compatibility


@pytest.fixture
def as_nnsight() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.usefixtures("as_nnsight")
def test_a_program_for_nnsight_imports_this_package(x: torch.Tensor) -> None:
    names: dict[str, Any] = {"Stack": parts.Stack, "x": x}
    text = dedent("""
        import nnsight
        import nnsight.intervention.envoy
        from nnsight import CONFIG, LanguageModel, NNsight, save
        from nnsight.modeling.language import LanguageModel as again
        from nnsight.intervention.envoy import Envoy
        model = nnsight.NNsight(Stack(11))
        with model.trace(x):
            h = nnsight.save(model.layers[0].output)
            found = list().save()
            found.append(model.layers[1].output)
    """)
    filename = "<a program for nnsight>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)
    assert names["LanguageModel"] is names["again"]
    assert issubclass(names["LanguageModel"], nnsight_dsl.LanguageModel)
    assert names["CONFIG"].APP.PYMOUNT is nnsight_dsl.CONFIG.APP.PYMOUNT
    assert issubclass(names["Envoy"], nnsight_dsl.Envoy)
    assert type(names["model"].layers[0]) is names["Envoy"]
    assert_same(names["h"], layer_output(0))
    assert_same(names["found"], [layer_output(1)])


@pytest.mark.usefixtures("as_nnsight")
def test_names_that_nnsight_has_deprecated_warn_at_the_users_line() -> None:
    compat.install("0.6")
    import nnsight  # type: ignore[import-not-found]

    with pytest.warns(DeprecationWarning, match=r"nnsight\.list is deprecated") as caught:
        assert nnsight.list((1, 2)) == [1, 2]
    assert Path(caught[0].filename).name == HERE
    with pytest.warns(DeprecationWarning, match="apply"):
        assert nnsight.apply(max, 1, 2) == 2
    with pytest.raises(ImportError):
        exec("from nnsight import no_such_name")


@pytest.mark.usefixtures("as_nnsight")
def test_the_names_of_nnsight_are_gone_after_uninstalling() -> None:
    compat.uninstall()
    assert not hasattr([], "save")
    assert not any(name.partition(".")[0] == "nnsight" for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nnsight")


def test_run_as_nnsight(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, nnsight\nfrom tests.language.parts import Stack\n"
        "from tests.language.samples import new_input\nmodel = nnsight.NNsight(Stack(11))\n"
        "with model.trace(new_input()):\n    h = model.layers[0].output.sum().item().save()\n"
        "print(sys.argv[1:], round(h, 3), __name__)\n"
    )
    said = python("-m", "nnsight_dsl", "run", "--as-nnsight", str(script), "a", "-b")
    assert said == f"['a', '-b'] {round(layer_output(0).sum().item(), 3)} __main__\n"


# the import hook


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = {*sys.modules}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.startswith("hooked_"):
            del sys.modules[name]


def imported(name: str, *packages: str) -> Any:
    importlib.invalidate_caches()
    with nnsight_dsl.install_import_hook(*packages):
        return importlib.import_module(name)


def test_a_module_without_blocks_is_left_alone(folder: Path) -> None:
    text = "with open(__file__) as file:\n    size = len(file.read())\n"
    for name in ("hooked_plainly", "hooked_by_us"):
        (folder / f"{name}.py").write_text(text)
    assert not may_hold_blocks(text.encode())
    importlib.invalidate_caches()
    plain = importlib.import_module("hooked_plainly")
    ours = imported("hooked_by_us", "hooked_by_us")
    assert isinstance(ours.__loader__, SourceFileLoader)
    written = {path.name for path in (folder / "__pycache__").iterdir()}
    tag = sys.implementation.cache_tag
    assert written == {f"hooked_plainly.{tag}.pyc", f"hooked_by_us.{tag}.pyc"}
    assert ours.__cached__ == plain.__cached__.replace("plainly", "by_us")
    assert ours.size == plain.size == len(text)


def test_the_trace_of_another_library_keeps_its_meaning(folder: Path) -> None:
    (folder / "hooked_otel.py").write_text(
        dedent("""
        import contextlib
        log = []
        class Span:
            def __init__(self, name): self.name = name
            def __enter__(self):
                log.append(("enter", self.name))
                return self
            def __exit__(self, *error):
                log.append(("exit", self.name, error[0]))
                return True
            output = 3
        class Tracer:
            def trace(self, name): return Span(name)
        def user(tracer):
            with tracer.trace("a") as span, tracer.trace("b"):
                found = span.output + 1
                span.output = 4
                raise ValueError(found)
            for i in range(3):
                with tracer.trace("c"):
                    if i: return found, span.output
        found = user(Tracer())
        with Tracer().trace("d"):
            unsaved = 5
    """)
    )
    module = imported("hooked_otel", "hooked_otel")
    assert module.found == (4, 4)
    assert module.unsaved == 5
    spans = [(entry[0], entry[1]) for entry in module.log]
    enter_exit = ("enter", "exit")
    both = [("enter", "a"), ("enter", "b"), ("exit", "b"), ("exit", "a")]
    assert spans == both + [(verb, "c") for _ in range(2) for verb in enter_exit] + [
        (verb, "d") for verb in enter_exit
    ]
    assert [entry[2] for entry in module.log if entry[0] == "exit"] == [ValueError] + [None] * 4


BLOCK = """\
from tests.language import parts
globals().update(parts.namespace())
NUMBER = 1
with model.trace(x):
    h = layers[NUMBER].output.save()
"""


def test_only_modules_of_the_named_packages_are_lowered(folder: Path) -> None:
    for name in ("hooked_one", "hooked_two", "hooked_one_more"):
        (folder / f"{name}.py").write_text(BLOCK)
    importlib.invalidate_caches()
    with nnsight_dsl.install_import_hook("hooked_one"):
        kinds = {
            name: type(importlib.import_module(name).__loader__)
            for name in ("hooked_one", "hooked_two", "hooked_one_more")
        }
    assert kinds.pop("hooked_one") is BlockLoader
    assert set(kinds.values()) == {SourceFileLoader}


def test_a_changed_module_is_lowered_again(folder: Path) -> None:
    path = folder / "hooked_changing.py"
    path.write_text(BLOCK)
    assert_same(imported("hooked_changing", "hooked_changing").h, layer_output(1))
    del sys.modules["hooked_changing"]
    path.write_text(BLOCK.replace("NUMBER = 1", "NUMBER = 3  # changed"))
    assert_same(imported("hooked_changing", "hooked_changing").h, layer_output(3))


def test_a_removed_hook_lowers_nothing(folder: Path) -> None:
    (folder / "hooked_late.py").write_text(BLOCK)
    importlib.invalidate_caches()
    hook = nnsight_dsl.install_import_hook("hooked_late")
    hook.remove()
    module = importlib.import_module("hooked_late")
    assert type(module.__loader__) is SourceFileLoader
    assert_same(module.h, layer_output(1))


def test_reloading_a_lowered_module(folder: Path) -> None:
    (folder / "hooked_again.py").write_text(BLOCK)
    importlib.invalidate_caches()
    with nnsight_dsl.install_import_hook("hooked_again"):
        module = importlib.import_module("hooked_again")
        (folder / "hooked_again.py").write_text(BLOCK.replace("= 1", "= 2 # other"))
        importlib.reload(module)
    assert_same(module.h, layer_output(2))


def test_the_option_of_pytest(tmp_path: Path) -> None:
    package = tmp_path / "optional"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blocks.py").write_text(BLOCK)
    (tmp_path / "test_it.py").write_text(
        "def test_it():\n    from optional import blocks\n"
        "    from nnsight_dsl.blocks.import_hook import BlockLoader\n"
        "    assert type(blocks.__loader__) is BlockLoader\n"
        "    assert blocks.h.shape == (2, 4)\n    assert blocks.h.shape != (1,), 'rewritten'\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "no:cacheprovider", "--nnsight-dsl-packages=optional,other"]
    assert "1 passed" in python("-m", "pytest", *options, cwd=tmp_path)


# explaining


@pytest.fixture
def explained(tmp_path: Path) -> Path:
    path = tmp_path / "explained.py"
    path.write_text(PROGRAM + "\nwith model.trace(x):\n    layers[1].output = 0\n")
    return path


def test_the_states_of_a_block_are_its_accesses(explained: Path) -> None:
    first, second = programs_in(explained)
    rows = rows_of(first)
    assert [(row.line, row.waits_for, row.binds) for row in rows] == [
        (4, "layers[0].output", ("a",)),
        (6, "layers[i].output", ("c",)),
        (7, "layers[4].output", ("d",)),
    ]
    assert [row.runs_after for row in rows] == [(5,), (), (8,)]
    assert [(row.line, row.waits_for) for row in rows_of(second)] == [
        (12, "write layers[1].output")
    ]


def test_the_command_line_explains_a_block(explained: Path) -> None:
    said = python("-m", "nnsight_dsl", "explain", f"{explained}:5")
    assert all(
        text in said for text in ("state", "waits for", "layers[0].output", "layers[4].output")
    )
    assert "write layers[1].output" not in said
    both = python("-m", "nnsight_dsl", "explain", str(explained))
    assert "layers[4].output" in both
    assert "write layers[1].output" in both


def test_a_place_without_a_block_is_said_to_be_one(explained: Path) -> None:
    said = python("-m", "nnsight_dsl", "explain", f"{explained}:1", status=1)
    assert "holds no block" in said
    python("-m", "nnsight_dsl", "explain", str(explained.with_suffix(".no")), status=2)


def test_a_diagram_has_a_state_for_each_access(explained: Path) -> None:
    (program,) = programs_in(explained, 4)
    lines = mermaid(program).splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert [line.strip() for line in lines if " as " in line] == [
        'state "line 4, layers[0].output" as s0_0',
        'state "line 6, layers[i].output" as s0_1',
        'state "line 7, layers[4].output" as s0_2',
    ]
    assert [line.strip().split(" : ")[0] for line in lines if "-->" in line] == [
        "[*] --> s0_0",
        "s0_0 --> s0_1",
        "s0_1 --> s0_2",
        "s0_2 --> [*]",
    ]


def test_an_intervention_explains_itself() -> None:
    said = samples.scaled.explain()
    assert "write model.layers[layer].output" in said
    assert "model.output" in said
    assert said == explain(samples.scaled.program)


def test_a_log_has_what_was_served(model: NNsight, x: torch.Tensor) -> None:
    def user() -> Any:
        with model.trace(x, log=True) as tracer:
            h = model.layers[1].output  # read
            model.layers[2].output = h * 2  # write
        return tracer

    entries = user().log
    assert [(one.location, one.step, one.verb, one.line) for one in entries] == [
        ("layers.1.output", 0, "read", line_of(user, "read")),
        ("layers.2.output", 0, "write", line_of(user, "write")),
    ]
    assert all("2, 4" in one.value or "2x4" in one.value for one in entries)
    assert 0 <= entries[0].seconds <= entries[1].seconds


def test_a_run_without_a_log_says_so(model: NNsight, x: torch.Tensor) -> None:
    with model.trace(x) as tracer:
        model.layers[1].output
    with pytest.raises(runtime_errors.NotRunningError, match="log=True"):
        tracer.log


# where no file is


def test_a_command_of_python() -> None:
    text = (
        "from tests.language import parts\nglobals().update(parts.namespace())\n"
        "with model.trace(x):\n    h = layers[1].output.sum().item().save()\nprint(round(h, 3))"
    )
    assert python("-c", text) == f"{round(layer_output(1).sum().item(), 3)}\n"


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, colors="nocolor")
    shell.user_ns.update(parts.namespace())
    yield shell
    shell.restore_sys_module_state()


def test_a_cell_is_edited_and_run_again(shell: InteractiveShell) -> None:
    cell = "with model.trace(x):\n    h = (layers[{}].output * {}).save()"
    for layer, factor in ((0, 1), (1, 1), (0, 1), (1, 3)):
        shell.run_cell(cell.format(layer, factor)).raise_error()
        assert_same(shell.user_ns["h"], layer_output(layer) * factor)


def test_a_function_of_an_earlier_cell_is_redefined(shell: InteractiveShell) -> None:
    for layer in (0, 2, 1):
        text = f"def user():\n    with model.trace(x):\n        h = layers[{layer}].output.save()\n"
        shell.run_cell(f"{text}    return h").raise_error()
        shell.run_cell("h = user()").raise_error()
        assert_same(shell.user_ns["h"], layer_output(layer))


@pytest.mark.parametrize("magic", ["%%time", "%%capture said"])
def test_a_cell_with_a_magic(shell: InteractiveShell, magic: str, capsys: Any) -> None:
    for layer in (1, 2):
        text = f"{magic}\nh = None\nwith model.trace(x):\n    h = layers[{layer}].output.save()"
        shell.run_cell(text).raise_error()
        assert_same(shell.user_ns["h"], layer_output(layer))


def test_an_error_in_a_cell_is_at_its_line(shell: InteractiveShell, capsys: Any) -> None:
    result = shell.run_cell("with model.trace(x):\n    h = layers[1].output\n    h.nothing")
    error = result.error_in_exec
    assert isinstance(error, AttributeError)
    entry = error.__traceback__
    assert entry is not None
    while entry.tb_next is not None:
        entry = entry.tb_next
    assert entry.tb_lineno == 3
    assert "ipython-input" in entry.tb_frame.f_code.co_filename


# around a block


def test_a_block_in_a_task_beside_others(x: torch.Tensor) -> None:
    import asyncio

    async def user(factor: float) -> torch.Tensor:
        model = NNsight(parts.Stack(11))
        await asyncio.sleep(0)
        with model.trace(x * factor):
            h = model.layers[1].output.save()
        await asyncio.sleep(0)
        return h

    async def all_of_them() -> list[torch.Tensor]:
        return await asyncio.gather(*(user(factor) for factor in (1, 2, 3)))

    assert_same(asyncio.run(all_of_them()), [layer_output(1, factor) for factor in (1, 2, 3)])


def test_blocks_in_threads(x: torch.Tensor) -> None:
    model = NNsight(parts.Stack(11))
    found: dict[int, torch.Tensor] = {}

    def user(factor: int) -> None:
        for _ in range(5):
            with model.trace(x * factor):
                h = model.layers[1].output.save()
            found[factor] = h

    threads = [threading.Thread(target=user, args=(factor,)) for factor in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(found, {factor: layer_output(1, factor) for factor in (1, 2, 3)})


def test_two_traces_of_two_models_in_one_with(x: torch.Tensor) -> None:
    model, other = NNsight(parts.Stack(11)), NNsight(parts.Stack(11))
    with model.trace(x) as one, other.trace(x * 2) as two:
        h = model.layers[1].output.save()
        k = other.layers[1].output.save()
    assert_same(h, layer_output(1))
    assert_same(k, layer_output(1, 2))


def test_a_trace_of_another_model_inside_a_block(x: torch.Tensor) -> None:
    model, other = NNsight(parts.Stack(11)), NNsight(parts.Stack(11))
    with model.trace(x):
        h = model.layers[0].output
        with other.trace(x * 2):
            k = save(other.layers[1].output)
        found = [h, k, model.layers[1].output].save()
    assert_same(found, [layer_output(0), layer_output(1, 2), layer_output(1)])
