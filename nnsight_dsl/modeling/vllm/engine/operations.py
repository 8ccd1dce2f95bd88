"""Taps on operations inside a module's forward, shared by all requests that address one.

    qkv, _ = self.c_attn(hidden)                    # in the forward of vLLM's GPT-2 attention
    qkv, _ = attn.source.self_c_attn_0.output       # in a block, with `attn` the module's envoy

For the length of a call, the module's `forward` is replaced by a copy of its bytecode with taps on
the operations that any request in the engine addresses (see
`nnsight_dsl.runtime.tapping.operations`). The copy is cached until another set of operations is
addressed.

An operation offers each request its own rows, as a batch of one, of every tensor whose first axis
is the tokens. The value is vLLM's own, without the forms of module outputs: a projection returns
`(tensor, None)`. A skip executes the operation and replaces the request's rows, since other
requests need theirs.

A program can address an operation too late, when the forward around it is already running without
the tap; `OperationRequestTap.uncovered` makes an error of that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import Any, Protocol

from torch import nn

from nnsight_dsl.modeling.vllm.engine.request_driver import OperationRequestTap, RequestTap
from nnsight_dsl.modeling.vllm.engine.request_run import Run
from nnsight_dsl.modeling.vllm.engine.slots import Slot, visits_among
from nnsight_dsl.runtime.errors import InternalError
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tapping.operations import (
    forward_of,
    function_inside,
    no_such_operation,
    tapped_copy,
)
from nnsight_dsl.transforms.bytecode.functions import rebuilt
from nnsight_dsl.transforms.bytecode.operations import operations_of
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT


class Forward(Protocol):
    """The forward that is running, as operations see it.

    Attributes:
        thread: id of the thread that runs the model.
        slots: the requests whose values are offered; empty between forwards.
    """

    thread: int
    slots: list[Slot[Run]]


class Inside:
    """The taps on the operations of one module's forward."""

    def __init__(self, engine: Forward, module: nn.Module) -> None:
        self._engine = engine
        self._module = module
        self._taps: dict[str, EngineOperationTap] = {}
        # ids of the requests' taps in the copy that is running; empty between calls
        self._running: frozenset[int] = frozenset()
        # the cached copy, after its key: the original, and the names of the tapped operations and
        # of those that are tapped before, too
        self._made: tuple[Any, frozenset[str], frozenset[str], Any] | None = None

    def add(self, tap: OperationRequestTap) -> None:
        """Let an operation offer its values to one more request."""
        name = tap.place._name
        found = self._taps.get(name)
        if found is None:
            found = self._taps[name] = EngineOperationTap(self._engine)
        found.taps[id(tap.driver)] = tap

    def remove(self, tap: OperationRequestTap) -> bool:
        """Stop offering an operation to a request; return True if no operation is left."""
        found = self._taps.get(tap.place._name)
        if found is not None:
            found.taps.pop(id(tap.driver), None)
            if not found.taps:
                del self._taps[tap.place._name]
        return not self._taps

    def covers(self, tap: OperationRequestTap) -> bool:
        """Return whether the running call has a request's tap on an operation."""
        return id(tap) in self._running

    def called(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a call of the module, so that it runs the tapped copy of the forward.

        The copy is made when the call begins: a program that was offered the module's input just
        before may have added a tap.
        """

        def with_taps(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            attributes = module.__dict__
            is_own, before = "forward" in attributes, attributes.get("forward")
            attributes["forward"] = self._tapped(forward_of(module))
            try:
                return call(module, *args, **kwargs)
            finally:
                self._running = frozenset()
                if is_own:
                    attributes["forward"] = before
                else:
                    del attributes["forward"]

        return with_taps

    def _tapped(self, forward: Any) -> Any:
        some = next((tap for one in self._taps.values() for tap in one.taps.values()), None)
        if some is None or some.place._parent is None:
            return forward
        heart = function_inside(some.place._parent)
        if heart is None:
            raise InternalError(f"{forward!r} has no operations inside")
        operations = operations_of(heart.__code__)
        for name in self._taps.keys() - operations.keys():
            for slot, tap in visits_among(self._engine.slots, self._taps[name].taps):
                parent = tap.place._parent
                where = "" if parent is None else parent._path
                slot.run.refuse(tap, no_such_operation(where, name, operations))
        taps = {name: tap for name, tap in self._taps.items() if name in operations}
        self._running = frozenset(id(tap) for one in taps.values() for tap in one.taps.values())
        around = frozenset(name for name, one in taps.items() if one.begin_call())
        key = forward, frozenset(taps), around
        if self._made is None or self._made[:3] != key:
            copy = rebuilt(forward, lambda inner: tapped_copy(inner, taps, around))
            self._made = (*key, copy)
        return self._made[3]


class EngineOperationTap:
    """The tap on an operation, for all requests that address it."""

    def __init__(self, engine: Forward) -> None:
        self.taps: dict[int, OperationRequestTap] = {}
        self._engine = engine
        self._is_around = False
        self._open: list[tuple[Any, set[int], Any]] = []

    def begin_call(self) -> bool:
        """Begin a call of the forward; return whether to tap before the operation, too.

        A tap before the operation offers its arguments; a tap after it suffices for the result.
        """
        self._open.clear()
        self._is_around = any(tap.is_around for tap in self.taps.values())
        return self._is_around

    def _visits(self) -> list[tuple[Slot[Run], RequestTap]]:
        """List the requests that address the operation and are offered values in this forward."""
        visits = visits_among(self._engine.slots, self.taps)
        return [(slot, tap) for slot, tap in visits if slot.is_offered]

    def before(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any]:
        """Offer the arguments; return a function without arguments that does the operation."""
        if self._is_seen():
            visits = self._visits()
            fresh: set[int] = set()
            given: Any = (args, kwargs)
            for slot, tap in visits:
                tap.begin_visit()
                given = slot.run.offer(tap, (INPUTS, 0), given, slot, fresh)
            args, kwargs = given
            self._open.append((visits, fresh, given))
        return functools.partial(function, *args, **kwargs)

    def after(self, value: Any) -> Any:
        """Offer the result; return it with the edits of all requests."""
        if not self._is_seen():
            return value
        if self._is_around and self._open:
            visits, fresh, (args, kwargs) = self._open.pop()
        else:
            visits, fresh = self._visits(), set()
            args, kwargs = (value,), {}
            for _, tap in visits:
                tap.begin_visit()
        for slot, tap in visits:
            value = slot.run.offer(tap, (OUTPUT, 0), value, slot, fresh)
            slot.run.end_visit(tap, args, kwargs, value, slot.span)
        return value

    def _is_seen(self) -> bool:
        """Return whether the model called the operation: in its thread, and not from a program."""
        return self._engine.thread == get_ident() and current_machine() is None
