"""What running a construct came to, in this process or written down by another one."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nnsight_dsl
from tests.language import parts
from tests.language.constructs import ALL, BY_NAME, MEANT, Construct
from tests.language.reference import kept, without_save
from tests.models import assert_same

MISSING = "<not bound>"


@dataclass(frozen=True)
class Outcome:
    """The names that left, the log, and what was raised.

    Attributes:
        names: values of the names that have to leave.
        log: what the statements wrote down.
        error: type, message and line, None if nothing was raised.
    """

    names: dict[str, Any]
    log: list[Any]
    error: tuple[str, str, int | None] | None


def described(error: BaseException) -> tuple[str, str, int | None]:
    return type(error).__name__, str(error), getattr(error, "lineno", None)


def outcome_of(row: Construct, run: Callable[[dict[str, Any]], Any]) -> Outcome:
    """Run a construct in a namespace of its own."""
    names = parts.namespace()
    return _outcome(row, names, lambda: run(names))


def expected_of(row: Construct) -> Outcome:
    """Run a construct's statements in plain Python, on values of plain hooks."""
    names = parts.reference_namespace()
    code = without_save(row.reference_text(), "<the reference>")
    return _outcome(row, names, lambda: exec(code, names))


def _outcome(row: Construct, names: dict[str, Any], run: Callable[[], Any]) -> Outcome:
    error = None
    try:
        run()
    except Exception as raised:
        error = described(raised)
    found = {name: kept(names.get(name, MISSING)) for name in row.saved}
    return Outcome(found, names["log"], error)


def assert_same_outcome(actual: Outcome, expected: Outcome) -> None:
    assert actual.error is None, actual.error
    assert expected.error is None, expected.error
    assert actual.log == expected.log, (actual.log, expected.log)
    assert actual.names.keys() == expected.names.keys()
    for name, value in expected.names.items():
        try:
            assert_same(actual.names[name], value)
        except AssertionError as error:
            error.add_note(f"{name} is {actual.names[name]!r} instead of {value!r}")
            raise


class Results:
    """Outcomes of one script that holds all constructs, one after the other."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}
        self._error: tuple[str, str, int | None] | None = None
        self._kept: frozenset[str] | None = None

    def begin(self, name: str, names: dict[str, Any]) -> None:
        if self._kept is None:
            self._kept = frozenset(names)
        for left_over in names.keys() - self._kept:
            del names[left_over]
        names.update(parts.namespace())
        self._error = None

    def failed(self, error: BaseException) -> None:
        self._error = described(error)

    def end(self, name: str, names: dict[str, Any]) -> None:
        found = {key: kept(names.get(key, MISSING)) for key in BY_NAME[name].saved}
        self._outcomes[name] = Outcome(found, names["log"], self._error)

    def write(self, path: str) -> None:
        Path(path).write_bytes(pickle.dumps(self._outcomes))


def script_of_all() -> str:
    """A script with each construct at its top level."""
    lines = ["import sys", "from tests.language.outcomes import Results", "results = Results()"]
    for row in ALL:
        lines += [f"results.begin({row.name!r}, globals())", "try:"]
        lines += [f"    {line}" for line in row.module_text().splitlines()]
        lines += ["except Exception as error:", "    results.failed(error)"]
        lines.append(f"results.end({row.name!r}, globals())")
    lines.append("results.write(sys.argv[1])")
    return "\n".join(lines) + "\n"


class Modules:
    """A folder of modules, one for each text; each is handed names, and hands back its own."""

    handed: dict[str, Any] = {}  # noqa: RUF012 - what a module takes at its import

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sys.path.insert(0, str(folder))

    def write(self, row: Construct, text: str, kind: str = "") -> str:
        """Write a module, and return its name."""
        name = f"nnsight_construct_{kind}{ALL.index(row)}"
        head = "from tests.language.outcomes import Modules; globals().update(Modules.handed)"
        (self.folder / f"{name}.py").write_text(f"{head}\n{text}")
        importlib.invalidate_caches()
        return name

    def run(self, name: str, names: dict[str, Any]) -> None:
        """Import a module, with names that it finds and those that it binds."""
        Modules.handed = names
        try:
            names.update(vars(importlib.import_module(name)))
        finally:
            Modules.handed = {}
            sys.modules.pop(name, None)


def run_cached(folder: str, path: str) -> None:
    """Import all modules of a folder in a process that must not have to compile them."""
    modules = Modules(Path(folder))
    found, loading = {}, []
    with nnsight_dsl.install_import_hook():
        for row in MEANT:
            name = f"nnsight_construct_{ALL.index(row)}"
            found[row.name] = outcome_of(row, partial(modules.run, name))
            if "libcst" in sys.modules:
                loading.append(row.name)
                for loaded in [one for one in sys.modules if one.partition(".")[0] == "libcst"]:
                    del sys.modules[loaded]
    Path(path).write_bytes(pickle.dumps((found, loading)))
