"""Everything a program may yield, and nothing else is ever yielded.

A program is a generator. Each time it needs something from the running model it yields a
*request*: a plain tuple whose first item is a verb.

| request                                     | the driver answers with                        |
|---------------------------------------------|------------------------------------------------|
| `("read", target, port)`                    | the value of the port, once it is offered      |
| `("write", value, target, port)`            | None, once the value is in place               |
| `("element", value, container, target, port, *path)` | None, once the element at the path of  |
|                                             | what was read from the port has been set       |
| `("steps", spec)`                           | an iterator object for the two requests below  |
| `("step", steps)`                           | True once the next step began, False at the end |
| `("block", target, number)`                 | the names the child block left, as a dict      |
| `("open", number, target)`                  | the names the child block left, as a dict      |
| `("backward", number, loss, (args, kwargs))` | the names the child block left, as a dict     |
| `("skip", target, value)`                   | None, once the module has been skipped         |
| `("bind", name, value)`                     | None; later invokes may now read the name      |
| `("name", name)`                            | what an earlier invoke bound to the name       |
| `("meet", barrier)`                         | None, once every participant is there          |
| `("stop",)`                                 | nothing: the machine ends here                 |
| `("end", *value)`                           | nothing: the block has come to its end         |
| `("call", target, args, kwargs)`            | the result of a tapped call of a module        |

A tuple costs 30 ns and no Python frame; a class with an `__init__` costs ten times that, at
every access. The value comes before the target in a write, as Python evaluates the right side
of an assignment first.

`target` may be any object: where it is not an address in a model, a read is `getattr`, a write
`setattr`, and the machine goes on at once. So an object of the user's own with an `output`
attribute behaves as ever.
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
"""Attribute names that are read and written by request."""
