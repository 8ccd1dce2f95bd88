"""What the tests of the lowering share: a block from text, and a driver that answers by hand.

The driver stands for the runtime where every value is there already: a read is `getattr`, a write
`setattr`. So a lowered block has to do what the same statements do in plain Python.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import indent
from types import CodeType, TracebackType
from typing import Any

from nnsight_dsl.transforms import names, requests
from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.requests import Request
from nnsight_dsl.transforms.source.pipeline import lower_block
from nnsight_dsl.transforms.source.surroundings import Surroundings

FILENAME = "<a block>"

INJECTED = {
    names.MISSING_NAME: names.MISSING,
    names.SAVE: lambda value: value.save() if hasattr(type(value), "save") else value,
    names.SAVE_OF: lambda value: value.save,
    names.KEY: names.KeyOf(),
    names.INPLACE: operator,
    names.USERS: names.users_names,
}


def with_of(source: str) -> ast.With:
    """Return the first `with` statement of a text."""
    return next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.With))


def lower(source: str, *, item: int = 0, **around: Any) -> Program:
    """Lower the block of the first `with` statement of a text."""
    surroundings = Surroundings(FILENAME, source.splitlines(), **around)
    return lower_block(with_of(source), item, surroundings)


def lower_body(body: str, **around: Any) -> Program:
    """Lower statements as the block of a trace, whose first line is line 2."""
    lines = "".join(f"    {line}\n" if line else "\n" for line in body.splitlines())
    return lower(f"with model.trace(0) as tracer:\n{lines}", **around)


def answer_to(request: Request) -> Any:
    """Answer a request as plain Python does."""
    verb, *operands = request
    if verb == requests.READ:
        return getattr(*operands)
    if verb == requests.WRITE:
        value, target, port = operands
        return setattr(target, port, value)
    if verb == requests.ELEMENT:
        value, container, _, _, *path = operands
        for key in path[:-1]:
            container = container[key]
        container[path[-1]] = value
        return None
    raise AssertionError(f"{verb} is not to be met in these blocks")


def drive(program: Program, outer: dict[str, Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    """Run a program to its end; return the names that it has bound."""
    running = program.start(outer, frame, INJECTED)
    try:
        request = next(running)
        while request[0] != requests.END:
            try:
                answer = answer_to(request)
            except Exception as error:
                request = running.throw(error)
            else:
                request = running.send(answer)
        frame_left = running.gi_frame
        return {} if frame_left is None else program.names_in(frame_left.f_locals)
    finally:
        running.close()


def codes_below(code: CodeType) -> Iterator[CodeType]:
    """Iterate over a code object and all that are nested in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from codes_below(const)


class Box:
    """A plain object with an attribute named like a port, which records what is done to it."""

    def __init__(self, log: list[Any], name: str, value: Any) -> None:
        self._log, self._name, self._value = log, name, value

    @property
    def output(self) -> Any:
        self._log.append(("get", self._name))
        return self._value

    @output.setter
    def output(self, value: Any) -> None:
        self._log.append(("set", self._name, value))
        self._value = value

    @output.deleter
    def output(self) -> None:
        self._log.append(("delete", self._name))


class Guard:
    """A context manager that records, and that swallows a ValueError."""

    def __init__(self, log: list[Any]) -> None:
        self._log = log

    def __enter__(self) -> int:
        self._log.append("enter")
        return 7

    def __exit__(self, _: Any, error: BaseException | None, *__: Any) -> bool:
        self._log.append(("exit", _kind(error)))
        return type(error) is ValueError


class Shelf:
    """A plain object whose `output` is a list; reads of it are not recorded."""

    def __init__(self) -> None:
        self.output = [1, 2, 3]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What running some statements came to."""

    names: dict[str, Any]
    log: list[Any]
    shelf: list[Any]
    error: tuple[Any, ...] | None


OUTER_NAMES = ("a", "b", "c", "d", "guard", "note", "x", "y")


def outcome_in_python(body: str, *, in_function: bool) -> Outcome:
    """Run statements as plain Python, in the place where the block would stand."""
    outer, log = _outer_names()
    text = "if True:\n" + indent(body, "    ")
    if in_function:
        text = f"def user({', '.join(OUTER_NAMES)}):\n{indent(text, '    ')}\n    return locals()\n"
        defined: dict[str, Any] = {}
        exec(compile(text, FILENAME, "exec"), defined)
        return _outcome(lambda: defined["user"](**outer), outer, log, "user")
    code = compile(text, FILENAME, "exec")

    def run() -> dict[str, Any]:
        exec(code, outer)
        return outer

    return _outcome(run, outer, log, "<module>")


def outcome_when_lowered(body: str, *, in_function: bool) -> Outcome:
    """Lower the same statements as the block of a trace, and drive the program by hand."""
    outer, log = _outer_names()
    if not in_function:
        program = lower_body(body)
        return _outcome(lambda: drive(program, outer, outer), outer, log, program.name)
    lines = indent(f"with model.trace(0):\n{indent(body, '    ')}", "    ")
    text = f"def user({', '.join(OUTER_NAMES)}):\n{lines}\n"
    (user,) = (const for const in compile(text, FILENAME, "exec").co_consts if _is_code(const))
    known = frozenset((*user.co_varnames, *user.co_cellvars))
    program = lower(text, is_function=True, name="user", locals=known)
    return _outcome(lambda: drive(program, {}, outer), outer, log, "user")


def _is_code(value: object) -> bool:
    return isinstance(value, CodeType)


def _outer_names() -> tuple[dict[str, Any], list[Any]]:
    log: list[Any] = []

    def note(value: Any) -> Any:
        log.append(("note", value))
        return value

    outer = {
        "a": Box(log, "a", 1),
        "b": Box(log, "b", 2),
        "c": Shelf(),
        "d": Box(log, "d", None),
        "guard": Guard(log),
        "note": note,
        "x": 10,
        "y": 20,
    }
    return outer, log


def _outcome(
    run: Callable[[], dict[str, Any]], outer: dict[str, Any], log: list[Any], function: str
) -> Outcome:
    shelf = outer["c"]
    error = None
    found: dict[str, Any] = {}
    try:
        found = run()
    except Exception as raised:
        entries = [
            entry
            for entry in _entries(raised.__traceback__)
            if entry.tb_frame.f_code.co_filename == FILENAME
        ]
        found = entries[0].tb_frame.f_locals if entries else {}
        error = (_kind(raised), _lines(entries), _kind(raised.__context__), _kind(raised.__cause__))
    names_found = {
        name: value
        for name, value in found.items()
        if name not in ("__builtins__", "__annotations__", "tracer")
        and not names.is_ours(name)
        and not isinstance(value, (Box, Guard, Shelf))
        and not callable(value)
    }
    return Outcome(names_found, log, shelf.output, error)


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _kind(error: BaseException | None) -> str | None:
    # a global that a block binds is a local of its program: the same error has a narrower type
    return {"UnboundLocalError": "NameError"}.get(type(error).__name__, type(error).__name__)


def _lines(entries: Sequence[TracebackType]) -> list[int]:
    # from 3.12 on a comprehension has no frame of its own, and a lowered one has
    return [line for line, _ in groupby(entry.tb_lineno for entry in entries)]


def assert_same_meaning(body: str, *, in_function: bool) -> None:
    """Compare a lowered block with the same statements in plain Python."""
    plain = outcome_in_python(body, in_function=in_function)
    lowered = outcome_when_lowered(body, in_function=in_function)
    assert lowered.error == plain.error, body
    assert lowered.log == plain.log, body
    assert lowered.shelf == plain.shelf, body
    outer, _ = _outer_names()
    for name in {*lowered.names, *plain.names}:
        if name in lowered.names:
            assert name in plain.names, f"{name} is bound in the block only\n{body}"
            assert lowered.names[name] == plain.names[name], f"{name}\n{body}"
        else:
            # what a block does not bind, it leaves as it was
            assert plain.names[name] == outer.get(name), f"{name} is not bound\n{body}"
