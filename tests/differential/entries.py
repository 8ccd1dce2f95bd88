"""Running a program: by the package, through one of its entry points, and by plain hooks."""

from __future__ import annotations

import importlib
import itertools
import linecache
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nnsight_dsl
from nnsight_dsl import LanguageModel, NNsight
from nnsight_dsl.import_hook import compile_module
from nnsight_dsl.script import run_script
from tests import models
from tests.differential.mirrors import Mirror
from tests.differential.oracle import Machine, Run
from tests.differential.programs import FUNCTIONS, Program
from tests.differential.statements import Saved, compiled, line_of, names_of_block
from tests.differential.worlds import EVENTS, PROMPTS, World
from tests.language import elsewhere

_numbers = itertools.count()
_NAME = re.compile(r"[a-z]\d*|seen|shared\d")

_HEADS = ("with model.", "seen = steps.run(")


@dataclass(frozen=True)
class Outcome:
    """What one entry of a block led to.

    Attributes:
        names: what the names of the user stand for afterwards.
        log: what the statements wrote down, and what the model itself was given.
        error: type and message of what was raised.
        line: the line that it was raised at.
    """

    names: dict[str, Any]
    log: list[Any]
    error: Any
    line: str | None


class Side:
    """What a program's text finds around it, and what it tells."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.world = World(program.family, program.kinds)
        self.outcomes: list[Outcome] = []
        self.error: BaseException | None = None
        self.log: list[Any] = []

    def names(self) -> dict[str, Any]:
        def note(value: Any) -> Any:
            self.log.append(("note", kept(value)))
            return value

        def tell(value_of: Callable[[], Any]) -> Any:
            try:
                return kept(value_of())
            except NameError:
                return "not bound"

        return {
            "elsewhere": elsewhere, "torch": torch, "note": note, "tell": tell, "log": self.log,
        }  # fmt: skip

    def in_each_event(self) -> Iterator[World]:
        for event in self.program.events:
            with EVENTS[event](self.world):
                self.log.clear()
                self.error = None
                torch.manual_seed(3)
                yield self.world

    def ended(self, names: Mapping[str, Any], line: str | None) -> None:
        found = {name: kept(value) for name, value in names.items() if _NAME.fullmatch(name)}
        for given in ("x", "p"):
            found.pop(given, None)
        log = [kept(one) for one in self.log]
        self.outcomes.append(Outcome(found, log, described(self.error), line))


def described(error: BaseException | None) -> Any:
    """Describe an error, with its message where that is not ours."""
    if error is None:
        return None
    kind = {"UnboundLocalError": "NameError"}.get(type(error).__name__, type(error).__name__)
    if isinstance(error, BaseExceptionGroup):
        return (kind, *(described(one) for one in error.exceptions))
    is_ours = isinstance(error, nnsight_dsl.errors.InterventionError)
    said = "" if is_ours or kind in ("NameError", "IndexError") else str(error)
    if kind == "WriteShapeError":
        return (kind,)
    return kind, said, described(error.__cause__)


def kept(value: Any) -> Any:
    """Copy a value, as it is now, to what can be compared."""
    if isinstance(value, torch.Tensor):
        return (
            "tensor", value.dtype, value.requires_grad, tuple(value.shape),
            value.detach().to(torch.float64).flatten().tolist(),
        )  # fmt: skip
    if isinstance(value, dict):
        return {key: kept(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [kept(one) for one in value]
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    return "an object"


# by the package


class Package(Side):
    """Runs a program's text through an entry point of the package."""

    filename = ""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.text = program.text()
        self.wrappers = [self._wrapped(net) for net in self.world.nets]
        self.untouched: list[str] = []

    def _wrapped(self, net: Any) -> Any:
        if self.world.is_language:
            return LanguageModel(net, tokenizer=models.tokenizer())
        return NNsight(net)

    def names(self) -> dict[str, Any]:
        return {
            **super().names(), "save": nnsight_dsl.save, "intervene": nnsight_dsl.intervene,
            "entries": self.entries, "failed": self.failed, "ended": self.left,
        }  # fmt: skip

    def entries(self) -> Iterator[Any]:
        for world in self.in_each_event():
            before = _state_of(world.net)
            yield self.wrappers[world.number], world.x(), PROMPTS
            if _state_of(world.net) != before:
                raise AssertionError("the run has left something on the model")

    def failed(self, error: BaseException) -> None:
        self.error = error

    def left(self, names: Mapping[str, Any]) -> None:
        line = None
        if self.error is not None:
            lines = self.text.splitlines()
            for entry in traceback.extract_tb(self.error.__traceback__):
                is_cell = self.program.entry == "cell" and "ipython-input" in entry.filename
                if (entry.filename == self.filename or is_cell) and entry.lineno:
                    line = lines[entry.lineno - 1].strip()
            # an error of the model itself is shown at the head of the block
            if line is not None and line.startswith(_HEADS):
                line = None
        self.ended(names, line)
        # each entry begins with the names that are there before the first
        for name in [one for one in names if _NAME.fullmatch(one)]:
            if isinstance(names, dict):
                names.pop(name, None)

    def run(self) -> list[Outcome]:
        getattr(self, f"_run_{_METHODS.get(self.program.entry, self.program.entry)}")()
        return self.outcomes

    def _registered(self) -> None:
        self.filename = f"<program {next(_numbers)}>"
        lines = self.text.splitlines(True)
        linecache.cache[self.filename] = (len(self.text), None, lines, self.filename)

    def _run_text(self) -> None:
        self._registered()
        exec(compile(self.text, self.filename, "exec", dont_inherit=True), self.names())

    def _run_lowered(self) -> None:
        self._registered()
        exec(compile_module(self.text, self.filename), self.names())

    def _file(self, name: str) -> Path:
        path = Path(folder()) / f"{name}.py"
        path.write_text(self.text)
        self.filename = str(path)
        return path

    def _run_file(self) -> None:
        path = self._file(f"program_{next(_numbers)}")
        runpy.run_path(str(path), init_globals=self.names(), run_name="__main__")

    def _run_script(self) -> None:
        self._hand_over()
        path = self._file(f"script_{next(_numbers)}")
        before = sys.argv, sys.path[0], sys.modules["__main__"], sys.excepthook
        try:
            run_script(path, ())
        finally:
            sys.argv, sys.path[0], sys.modules["__main__"], sys.excepthook = before

    def _run_module(self) -> None:
        self._hand_over()
        name = f"nnsight_program_{next(_numbers)}"
        self._file(name)
        importlib.invalidate_caches()
        sys.path.insert(0, folder())
        try:
            with nnsight_dsl.install_import_hook(name):
                importlib.import_module(name)
        finally:
            sys.path.remove(folder())
            sys.modules.pop(name, None)

    def _hand_over(self) -> None:
        handed.update(self.names())
        self.text = (
            "from tests.differential.entries import handed; globals().update(handed)\n" + self.text
        )

    def _run_cell(self) -> None:
        shell = the_shell()
        shell.user_ns.update(self.names())
        show, shell.showtraceback = shell.showtraceback, lambda *args, **kwargs: None
        try:
            shell.run_cell(self.text).raise_error()
        finally:
            shell.showtraceback = show
        for name in [one for one in shell.user_ns if _NAME.fullmatch(one)]:
            shell.user_ns.pop(name)


_METHODS = {
    "function": "text", "carried": "text", "intervention": "text", "intervention in a block": "text"
}  # fmt: skip

handed: dict[str, Any] = {}
_folders: list[tempfile.TemporaryDirectory[str]] = []
_shells: list[Any] = []


def folder() -> str:
    """Return a folder for the files of this process."""
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="nnsight-programs-"))
    return _folders[0].name


def the_shell() -> Any:
    """Return the notebook of this process."""
    if not _shells:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        _shells.append(InteractiveShell(config=config, colors="nocolor"))
    return _shells[0]


def _state_of(net: Any) -> list[Any]:
    return [
        (type(module), module.__class__, [*vars(module)], len(module._forward_hooks),
         len(module._forward_pre_hooks), "forward" in vars(module))
        for module in net.modules()
    ]  # fmt: skip


# by plain hooks


class Plain(Side):
    """Runs a program's blocks by the interpreter of plain hooks."""

    def run(self) -> list[Outcome]:
        for world in self.in_each_event():
            outer: dict[str, Any] = {**self.names()}
            mirror = Mirror(world.net)
            exec(self.program.head, {**outer, "model": mirror}, outer)
            outer["model"], outer["x"], outer["p"] = mirror, world.x(), PROMPTS
            self._enter(world, mirror, outer)
        return self.outcomes

    def _enter(self, world: World, mirror: Mirror, outer: dict[str, Any]) -> None:
        program = self.program
        given = [part.prompt for part in program.parts if part.prompt is not None]
        total = len(given)
        run = Run(world.net, total, is_stepped=bool(program.n_steps))
        mirror._runs.append(run)
        saved = Saved()
        failing: str | None = None
        number = 0
        for part in program.parts:
            rows = None
            if part.prompt is not None and total > 1:
                rows = (number, 1)
                number += 1
            code = compiled(part.body, part.told, part.fetched)
            names = names_of_block(run, saved, outer)
            if program.before:
                names["_before"] = run
                exec(program.before, names)
            run.add(Machine(code, names, rows))
        try:
            self._run_model(run, world, given)
        except BaseException as error:
            self.error = error
            body = program.parts[0].body
            for machine, part in zip(run.machines, program.parts, strict=True):
                if machine.has_failed:
                    body = part.body
            failing = line_of(error, body)
        found = {name: value for name, value in outer.items() if _NAME.fullmatch(name)}
        for machine in run.machines:
            found.update(saved.leaving(machine.names, outer))
        if program.entry in FUNCTIONS:
            (machine,) = run.machines
            is_kept = self.error is None or program.entry != "intervention"
            found = {"seen": machine.names["seen"]} if is_kept and "seen" in machine.names else {}
        self.ended(found, failing)

    def _run_model(self, run: Run, world: World, given: list[int]) -> None:
        net, program = world.net, self.program
        if not world.is_language:
            run.run(net, (world.x(),), {})
            return
        prompts = [world.x()] if program.is_direct else [PROMPTS[number] for number in given]
        arguments = models.encoded(*prompts)
        if program.n_steps:
            options = {"max_new_tokens": program.n_steps, "min_new_tokens": program.n_steps}
            run.run(net.generate, (), {**arguments, **options, "do_sample": False})
        else:
            run.run(net, (), arguments)
