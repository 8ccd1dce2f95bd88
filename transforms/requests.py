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

from typing import Any, TypeAlias

Request: TypeAlias = tuple[Any, ...]

READ = "read"
WRITE = "write"
ELEMENT = "element"
STEPS = "steps"
STEP = "step"
BLOCK = "block"
SKIP = "skip"
BACKWARD = "backward"
OPEN = "open"
BIND = "bind"
NAME = "name"
MEET = "meet"
STOP = "stop"
END = "end"
CALL = "call"

PORTS = frozenset({"output", "input", "inputs", "result", "grad"})
"""Attribute names whose loads and stores are lowered to requests."""
