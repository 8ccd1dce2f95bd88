"""Requests: a program yields nothing but the tuples listed here.

A program is a generator. Each time it needs something from the running model it yields a
*request*: a plain tuple whose first item is a verb. The driver (`nnsight_dsl.runtime.driving`)
answers by sending a value into the generator.

| request                                     | the driver answers with                        |
|---------------------------------------------|------------------------------------------------|
| `("read", target, port)`                    | the value of the port, once it is offered      |
| `("write", value, target, port)`            | None, once the value is in place               |
| `("element", value, container, target, port, *path)` | None, once the element at `path` of    |
|                                             | `container`, the port's value, has been set    |
| `("steps", spec)`                           | an iterator object for the next request        |
| `("step", steps)`                           | True once the next step began, False at the end |
| `("block", target, number)`                 | the names bound by the child block, as a dict  |
| `("open", number, target)`                  | the names bound by the child block, as a dict  |
| `("backward", number, loss, (args, kwargs))` | the names bound by the child block, as a dict |
| `("skip", target, value)`                   | None, once the module has been skipped         |
| `("bind", name, value)`                     | None; later invokes may now read the name      |
| `("name", name)`                            | the value an earlier invoke bound to the name  |
| `("meet", barrier)`                         | None, once every participant is there          |
| `("stop",)`                                 | no answer: the machine ends here               |
| `("end", *value)`                           | no answer: the block has reached its end       |
| `("call", target, args, kwargs)`            | the result of a tapped call of a module        |

Requests are tuples for speed: a tuple costs 30 ns and no Python frame, a class with an `__init__`
costs ten times that, at every access. In a write the value comes before the target, because
Python evaluates the right side of an assignment first.

`target` may be any object. If it is not an address in a model, a read falls back to `getattr` and
a write to `setattr`, and the machine continues at once. So a user's object that happens to have
an `output` attribute behaves as it does in plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

Request: TypeAlias = tuple[Any, ...]
Port: TypeAlias = Literal["output", "input", "inputs", "result", "grad"]
Phase: TypeAlias = Literal["inputs", "output"]
"""When a request is answered: before the call of its module, or after it."""

READ: Final = "read"
WRITE: Final = "write"
ELEMENT: Final = "element"
STEPS: Final = "steps"
STEP: Final = "step"
BLOCK: Final = "block"
SKIP: Final = "skip"
BACKWARD: Final = "backward"
OPEN: Final = "open"
BIND: Final = "bind"
NAME: Final = "name"
MEET: Final = "meet"
STOP: Final = "stop"
END: Final = "end"
CALL: Final = "call"

OUTPUT: Final = "output"
INPUT: Final = "input"
INPUTS: Final = "inputs"
RESULT: Final = "result"
GRAD: Final = "grad"

MODULE_PORTS: Final = (OUTPUT, INPUT, INPUTS)
"""The ports of a module."""

PORTS = frozenset({*MODULE_PORTS, RESULT, GRAD})
"""Attribute names whose loads and stores are lowered to requests."""
MOVED = "E_"
"""In programs for nnsight 0.8, what precedes the name of a submodule that is named as a port."""

BEFORE_CALL: Final = (INPUT, INPUTS)
"""Ports whose values exist before the call of their module."""

_TARGETS: Mapping[str, int] = {READ: 1, WRITE: 2, ELEMENT: 3, STEP: 1, SKIP: 1, CALL: 1}
_PORTS: Mapping[str, int] = {READ: 2, WRITE: 3, ELEMENT: 4}


def target_of(request: Request) -> Any:
    """Return the object that a request is for, None if it has none."""
    index = _TARGETS.get(request[0])
    return None if index is None else request[index]


def port_of(request: Request) -> str | None:
    """Return the port that a request is for, None if it has none."""
    index = _PORTS.get(request[0])
    return None if index is None else request[index]


def phase_of(request: Request) -> Phase | None:
    """Return the phase in which a request is answered, None if it is for no module."""
    port = port_of(request)
    if port is not None:
        return INPUTS if port in BEFORE_CALL else OUTPUT
    return INPUTS if request[0] == SKIP else None
