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
from nnsight_dsl.blocks.import_hook import compile_module
from nnsight_dsl.blocks.script import run_script
from nnsight_dsl.tracing.cache import Cache
from tests import models
from tests.differential.mirrors import Mirror
from tests.differential.oracle import Machine, Run
from tests.differential.programs import FUNCTIONS, Part, Program
from tests.differential.statements import Saved, compiled, line_of, names_of_block
from tests.differential.worlds import EVENTS, PROMPTS, World, with_accessors
from tests.language import elsewhere

_numbers = itertools.count()
_NAME = re.compile(r"([a-z]\d*|seen)(_\d)?|cache|loss")

_HEADS = ("with model.", "with edited.", "with tracer.invoke(", "seen = steps.run(")


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

    is_probed = False

    def __init__(self, program: Program) -> None:
        self.program = program
        self.world = World(program.family, program.layers, is_probed=self.is_probed)
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
    kind = type(error).__name__
    kind = {"UnboundLocalError": "NameError", "GradientOrderError": "GradientError"}.get(kind, kind)
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
    if isinstance(value, Cache):
        return {key: kept(entry.outputs) for key, entry in value.items()}
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
        kind: Any = LanguageModel if self.world.is_language else NNsight
        if self.program.has_accessors:
            kind = with_accessors(kind, self.program.family)
        options = {"tokenizer": models.tokenizer()} if self.world.is_language else {}
        return kind(net, **options)

    def names(self) -> dict[str, Any]:
        return {
            **super().names(), "save": nnsight_dsl.save, "intervene": nnsight_dsl.intervene,
            "entries": self.entries, "failed": self.failed, "ended": self.left,
        }  # fmt: skip

    def entries(self) -> Iterator[Any]:
        for world in self.in_each_event():
            before = _state_of(world.net)
            yield self.wrappers[world.number], world.x(), PROMPTS
            after = _state_of(world.net)
            if after != before:
                changed = [pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]]
                raise AssertionError(f"the run has left something on the model: {changed[:2]}")

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


_USUAL_NAMES = frozenset(vars(torch.nn.Module()))


def _state_of(net: Any) -> list[Any]:
    return [
        (name, type(module), sorted(vars(module).keys() - _USUAL_NAMES), len(module._forward_hooks),
         len(module._forward_pre_hooks))
        for name, module in net.named_modules()
    ]  # fmt: skip


# by plain hooks


class Plain(Side):
    """Runs a program's blocks by the interpreter of plain hooks."""

    is_probed = True

    def run(self) -> list[Outcome]:
        for world in self.in_each_event():
            outer: dict[str, Any] = {**self.names()}
            kind: Any = Mirror
            if self.program.has_accessors:
                kind = with_accessors(Mirror, self.program.family)
            mirror = kind(world.net)
            exec(self.program.head, {**outer, "model": mirror}, outer)
            outer["model"], outer["x"], outer["p"] = mirror, world.x(), PROMPTS
            self._enter(world, mirror, outer)
        return self.outcomes

    def _enter(self, world: World, mirror: Mirror, outer: dict[str, Any]) -> None:
        program = self.program
        saved = Saved()
        failing: str | None = None
        # the parts of a session run one after the other, with names that are the session's
        groups = [[part] for part in program.parts]
        if program.kind != "session":
            groups = [[*program.parts]]
        left: list[tuple[dict[str, Any], frozenset[int] | None]] = []
        around = outer
        for group in groups:
            machines, failing = self._run_group(group, world, mirror, around, saved)
            if program.kind == "edit":
                machines = machines[1:]
            left += [(machine.names, machine.saved) for machine in machines]
            if program.kind == "session":
                # what a later trace binds is what the name stands for at the session's end, also
                # if that trace has failed
                bound = machines[0].names
                left = [
                    ({n: v for n, v in names.items() if n == "_own" or bound.get(n) is v}, ids)
                    for names, ids in left
                ]
            if program.kind == "session":
                own = {n: v for n, v in machines[0].names.items() if not n.startswith("_")}
                around = {**around, **own}
            if self.error is not None:
                break
        found = {name: value for name, value in outer.items() if _NAME.fullmatch(name)}
        for names, identities in left:
            found.update(saved.leaving(names, outer, identities))
        if program.entry in FUNCTIONS:
            is_kept = self.error is None or program.entry != "intervention"
            names = left[0][0]
            found = {"seen": names["seen"]} if is_kept and "seen" in names else {}
            if program.entry == "intervention" and self.error is None:
                # one that has been stopped returns None
                found.setdefault("seen", None)
        self.ended(found, failing)

    def _run_group(
        self,
        parts: list[Part],
        world: World,
        mirror: Mirror,
        around: dict[str, Any],
        saved: Saved,
    ) -> tuple[list[Machine], str | None]:
        """Run a model once, with some blocks; return them, and the line that has failed."""
        program = self.program
        given = [part.prompt for part in parts if part.prompt is not None]
        total = len(given)
        run = Run(world.net, total, is_stepped=bool(program.n_steps))
        mirror._runs.append(run)
        if program.before:
            around = names_of_block(run, saved, around)
            exec(program.before, around)
        number = 0
        for part in parts:
            rows = None
            if part.prompt is not None and total > 1:
                rows = (number, 1)
                number += 1
            in_block = program.entry != "carried"
            code = compiled(part.body, part.told, part.fetched, in_block=in_block)
            run.add(Machine(code, names_of_block(run, saved, around), rows))
        failing = None
        try:
            self._run_model(run, world, given, around["x"])
        except BaseException as error:
            self.error = error
            # the machine that raised, else the one whose write the model may have failed on
            order = sorted(
                zip(run.machines, parts, strict=True),
                key=lambda pair: (not pair[0].has_failed, pair[0] is not run.suspect_by),
            )
            raised_by, part = order[0]
            is_known = raised_by.has_failed or raised_by is run.suspect_by
            body = (part if is_known else parts[-1]).body
            failing = line_of(error, body)
        return run.machines, failing

    def _run_model(self, run: Run, world: World, given: list[int], x: Any) -> None:
        net, program = world.net, self.program
        if not world.is_language:
            run.run(net, (x,), {})
            return
        prompts = [x] if program.is_direct else [PROMPTS[number] for number in given]
        arguments = models.encoded(*prompts)
        if program.n_steps:
            options = {"max_new_tokens": program.n_steps, "min_new_tokens": program.n_steps}
            run.run(net.generate, (), {**arguments, **options, "do_sample": False})
        else:
            run.run(net, (), arguments)
