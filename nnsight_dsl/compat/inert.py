"""Names that programs import and that have no meaning here.

A class can be imported and asked for by `isinstance`, and says why it cannot be made. A function
whose effect concerns remote execution alone has none; one whose answer would be needed says why
there is no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

_NO_REMOTE = "remote execution is not built; leave remote=True out to run on this machine"


class Object(Any):
    """The type of a value in a block, for annotations. A value has the type of the value itself."""


def _cannot_be_made(name: str, reason: str) -> type:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"{name} cannot be made: {reason}")

    members = {"__init__": __init__, "__doc__": f"Not built: {reason}.", "__module__": __name__}
    return type(name, (), members)


def _without_answer(name: str) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"nnsight.{name}() has no answer: {_NO_REMOTE}")

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Not built: {_NO_REMOTE}."
    return function


# remote execution

AsyncRemoteBackend = _cannot_be_made("AsyncRemoteBackend", _NO_REMOTE)
RemoteBackend = _cannot_be_made("RemoteBackend", _NO_REMOTE)
EnvComparison = _cannot_be_made("EnvComparison", _NO_REMOTE)
NdifStatus = _cannot_be_made("NdifStatus", _NO_REMOTE)
CRITICAL_PACKAGES: frozenset[str] = frozenset()


class RemoteError(Exception):
    """A remote run has failed. Never raised: there are none."""


def register(*modules: Any) -> None:
    """Have no effect: sources travel with remote requests only, and those are refused."""


def is_model_running(*args: Any, **kwargs: Any) -> bool:
    """Return False: no model runs where this package could reach it."""
    return False


compare = _without_answer("compare")
get_local_env = _without_answer("ndif.get_local_env")
get_remote_env = _without_answer("ndif.get_remote_env")
login = _without_answer("login")
ndif_status = _without_answer("ndif_status")
pull_env = _without_answer("ndif.pull_env")
status = _without_answer("status")
whoami = _without_answer("whoami")

# the interleaver, in whose place runs a driver

_NO_INTERLEAVER = "a run has a driver in its place, which programs do not make"
Interleaver = _cannot_be_made("Interleaver", _NO_INTERLEAVER)
Mediator = _cannot_be_made("Mediator", _NO_INTERLEAVER)


class Event(Enum):
    """Kinds of requests, by the names that nnsight has for them."""

    VALUE = "value"
    SWAP = "swap"
    SKIP = "skip"
    BARRIER = "barrier"


class EarlyStopException(Exception):
    """A run was stopped by `tracer.stop()`. Never raised: a run that is stopped just ends."""


class ExitTracingException(Exception):
    """The body of a block is skipped. Never raised: bodies are skipped by other means."""
