"""`.source`: the operations inside a forward.

    print(model.transformer.h[0].attn.source)                 # the forward, with their names

    with model.trace("Hello"):
        attention = model.transformer.h[0].attn.source.attention_interface_0
        weights = attention.output[1].save()                  # part of the call's result
        scores = attention.source.torch_matmul_0.output       # inside the function it called

An operation has the ports of a module. Its `.input` and `.inputs` are the arguments of a call, the
operands of an operator, and the value itself for a local or a return value.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from rich.text import Text

from nnsight_dsl.envoys.ports import PORTS, Ports
from nnsight_dsl.rendering import rendered
from nnsight_dsl.runtime.errors import NoSourceError, PathError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tapping.operations import (
    OperationPlace,
    function_inside,
    no_such_operation,
    operations_in,
    spot_of,
)
from nnsight_dsl.runtime.tapping.torch_fast_path import is_compiled_around
from nnsight_dsl.runtime.values.known_types import NOT_THERE, class_attribute
from nnsight_dsl.transforms.bytecode.operations import CALL, LOCAL, Operation

_AROUND = 4
"""How many lines are shown before and after an operation."""


class SourceOperation(Ports, OperationPlace):
    """One operation; see `Source`."""

    def __init__(self, parent: Place, name: str) -> None:
        self._place(parent, name)

    @property
    def source(self) -> Source:
        """The operations of the Python function that this operation calls."""
        source = Source(self)
        if self._root is not None and self._root._lists_operations:
            # a program for nnsight 0.8 asks in this way whether there are some
            source._check()
            if current_machine() is None:
                raise NoSourceError(
                    f"which function {self._path} calls is known in a run; ask for its .source "
                    "inside 'with model.trace(...):'"
                )
        return source

    def _module_called(self) -> str | None:
        """Return the path of the submodule that the operation calls, by its name."""
        operation = self._operation()
        if len(self._chain) > 1 or operation is None or operation.kind != CALL:
            return None
        for path, _ in self._owner.named_modules():
            if path and operation.label == f"self_{path.replace('.', '_')}":
                above = self._parent._path if self._parent is not None else ""
                return f"{above}.{path}" if above else path
        return None

    def _descend(self, item: str | int) -> Place | None:
        return Source(self) if item == "source" else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if class_attribute(type(self), name) is not NOT_THERE:
            # Python has dropped the error that a port raised: raise it again
            return object.__getattribute__(self, name)
        raise PathError(
            f"the operation {self._path} has no attribute {name!r}; it has "
            f"{', '.join((*PORTS, 'skip', 'source'))}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in PORTS:
            raise AttributeError(
                f"{name!r} of the operation {self._path} cannot be set; it has {', '.join(PORTS)}"
            )
        self._write(name, value)

    def __repr__(self) -> str:
        operation = self._operation()
        function = function_inside(self._parent) if self._parent is not None else None
        if operation is None or function is None:
            return f"<operation {self._path}>"
        return f"{self._path}:\n\n{_printed(_in_context(function, operation))}"


class Source(Place):
    """The operations of one function.

    They are attributes: `source.self_c_proj_0`. `print(source)` shows them beside the text, and
    those that the last run did not do; `source.names` has their names.
    """

    def __init__(self, place: Place) -> None:
        self._module = None
        self._parent = place
        self._root = place._root
        self._path = f"{place._path}.source" if place._path else "source"

    def _check(self) -> None:
        """Check that there is a function with operations.

        Raises:
            NoSourceError: the forward is not written in Python, it is that of a `torch.compile`
                wrapper, or the operation calls a module.
        """
        place = self._parent
        if isinstance(place, SourceOperation):
            path = place._module_called()
            if path is not None:
                raise NoSourceError(
                    f"{place._path} calls the module {path}, which has its own source; write "
                    f"model.{path}.source"
                )
        elif place is not None and is_compiled_around(place._module):
            path = place._path or "model"
            raise NoSourceError(
                f"{path} is what torch.compile has put around a module, and its forward is not the "
                f"module's; write {path}._orig_mod.source"
            )
        elif place is not None and function_inside(place) is None:
            raise NoSourceError(
                f"the forward of {place._path or 'the model'} ({type(place._module).__name__}) is "
                "not written in Python, so it has no operations to name; read .input and .output"
            )

    def _known(self) -> Mapping[str, Operation] | None:
        function = function_inside(self._parent) if self._parent is not None else None
        return None if function is None else operations_in(self, function)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the operations, in the order of evaluation; an operation so named is
        `source["names"]`.

        Raises:
            NoSourceError: there is no function with operations.
        """
        self._check()
        return tuple(self._known() or ())

    def _named(self, name: str) -> SourceOperation | None:
        parent, known = self._parent, self._known()
        if parent is None:
            return None
        if known is not None and name not in known:
            first, _, number = name.rpartition("_")
            if number == "0" and first in known and known[first].kind == LOCAL:
                return SourceOperation(parent, first)
            # an operation may call another function in this run
            if not isinstance(parent, OperationPlace):
                return None
        return SourceOperation(parent, name)

    def _descend(self, item: str | int) -> Place | None:
        return self._named(item) if isinstance(item, str) else None

    def __getattr__(self, name: str) -> SourceOperation:
        # a look-up of a protocol or a private field does not mean an operation
        if name.startswith("_") and ("_parent" not in self.__dict__ or name not in self):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> SourceOperation:
        self._check()
        found = self._named(name)
        if found is None:
            raise no_such_operation(self._path.removesuffix(".source"), name, self._known() or ())
        return found

    def __iter__(self) -> Iterator[Any]:
        names = iter(self._known() or ())
        if self._root is not None and self._root._lists_operations:
            return map(self._named, names)
        return names

    def __len__(self) -> int:
        return len(self._known() or ())

    def __contains__(self, name: object) -> bool:
        return name in (self._known() or ())

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._known() or ())]

    def __repr__(self) -> str:
        self._check()
        place = self._parent
        function = function_inside(place) if place is not None else None
        if (
            function is None
            and isinstance(place, SourceOperation)
            and current_machine() is not None
        ):
            # the function is known once the run calls it: wait for that
            place._read("inputs")
            function = function_inside(place)
            if function is None:
                raise NoSourceError(
                    f"{place._path} calls a function that is not written in Python, so it has no "
                    "operations inside; read its .input and .output"
                )
        if place is None or function is None:
            return f"<source of {self._path}: known once a run has called it>"
        is_operation = isinstance(place, OperationPlace)
        spot = place._module if is_operation else spot_of(place._module, ())
        return _printed(_beside_text(function, operations_in(self, function), spot.ran))


def _lines_of(function: FunctionType) -> tuple[list[str], int]:
    """Return the lines of a function's text, if there is one, and its first line number."""
    try:
        lines, first = inspect.getsourcelines(function.__code__)
    except (OSError, TypeError):
        return [], function.__code__.co_firstlineno
    return [line.rstrip("\n") for line in lines], first


def _beside_text(
    function: FunctionType, operations: Mapping[str, Operation], ran: Mapping[str, bool]
) -> Text:
    """Format a function with the names of its operations at the left of their lines."""
    lines, first = _lines_of(function)
    at: dict[int, list[str]] = {}
    for name, operation in operations.items():
        at.setdefault(operation.line, []).append(name)
    if not lines:
        lines = [""] * (max(at, default=first) - first + 1)
    width = max((len(name) for name in operations), default=0) + len(" (not done)")
    text = Text(no_wrap=True)
    for number, line in enumerate(lines, first):
        names = at.get(number, [])
        for name in names or [""]:
            is_first = not names or name == names[0]
            mark = " (not done)" if ran.get(name) is False else ""
            style = "dim" if mark else "green"
            text.append(f"{name}{mark}".ljust(width), style if name else "")
            text.append(" -> " if name else "    ")
            text.append(f"{number - first if is_first else '+':>4} ", "dim")
            indent = line[: len(line) - len(line.lstrip())]
            text.append(f"{line if is_first else indent + '...'}\n")
    return text


def _in_context(function: FunctionType, operation: Operation) -> Text:
    """Format an operation with the lines around it."""
    lines, first = _lines_of(function)
    text = Text(no_wrap=True)
    last = operation.end_line or operation.line
    for number, line in enumerate(lines, first):
        if not operation.line - _AROUND <= number <= last + _AROUND:
            continue
        is_here = operation.line <= number <= last
        text.append("--> " if is_here else "    ")
        text.append(f"{line}\n", "green" if is_here else "")
    return text


def _printed(text: Text) -> str:
    """Render text, with colours if it goes to a terminal."""
    is_terminal = bool(getattr(sys.stdout, "isatty", bool)())
    return rendered(text, colour=is_terminal, end="")
