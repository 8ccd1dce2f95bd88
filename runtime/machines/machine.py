"""Machines: one running program in one run of a model.

A machine is a generator, resumed by the driver with the answer to its last request. While it runs
it is the current machine (`current_machine`), kept in a context variable, which is the only global
state.

Most code of a block is lowered, and waits by yielding. Code that was not lowered can access a model
value, too: a helper in another file, a property of a user's class, a callback under `map`. It
cannot yield for the machine, so it needs a stack to wait on. Each time a machine is advanced it
therefore runs on a fresh `greenlet`, on the same thread. If such code asks for a value, that
greenlet is suspended, and it is switched back to with the answer: the call is *carried*. A machine
of a plain program (see `nnsight_dsl.transforms.source.plain`) never carries a call, and is resumed
without a greenlet, which is a microsecond cheaper.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from greenlet import getcurrent

from nnsight_dsl.runtime.errors import (
    CarriedCallError,
    InternalError,
    NotRunningError,
    RunEnded,
    SharedNameError,
)
from nnsight_dsl.runtime.tracebacks import clean, original
from nnsight_dsl.runtime.values.known_types import is_known
from nnsight_dsl.runtime.values.rows import Rows
from nnsight_dsl.transforms.names import MISSING, OUTER
from nnsight_dsl.transforms.program import Program, Running
from nnsight_dsl.transforms.requests import Phase, Request

from .ambient import Ambient
from .carrying import Stack
from .saved import Saved

_current: contextvars.ContextVar[Machine | None] = contextvars.ContextVar(
    "nnsight_dsl_machine", default=None
)

advanced = _current.get
"""`current_machine` without a Python frame, for the checks that are made at each call."""

_ENDED = contextvars.Context()
"""The context of machines that have ended."""

_MOST_CLOSING_REQUESTS = 100
"""How often a closing machine may ask again before it is dropped."""


class Loop(Protocol):
    """A loop over steps that a machine is in (see `steps.py`).

    Attributes:
        over: the exception that ends it in one of its iterations.
        is_open: whether it has no last iteration.
        is_lowered: whether it is in lowered code, which catches `over`.
        is_over: whether `over` has ended it.
        value: the step of its round.
    """

    is_open: bool
    is_lowered: bool
    is_over: bool
    value: Any

    @property
    def over(self) -> type[BaseException]:
        """See above."""


def current_machine() -> Machine | None:
    """Return the machine that runs in this context, None outside of one."""
    return _current.get()


def set_current(machine: Machine | None) -> Machine | None:
    """Make a machine the current one; return the previous one."""
    outer = _current.get()
    if outer is not machine:
        _current.set(machine)
    return outer


class Machine:
    """One running program.

    Attributes:
        program: the program that it runs.
        order: position among the machines of its run, in order of definition.
        send: resumes the generator of a plain machine, in its context; None for other machines.
        rows: rows of the batch that it sees, None for all.
        pending: the request that it waits with, None while it runs and when it is done.
        phase: phase of the pending request: `"inputs"` of a call, or its `"output"`.
        step: step (or occurrence) that its requests are pinned to.
        loops: the loops over steps that it is in, outermost first.
        names: after its end, the names that may leave, with their values.
        is_done: True when it has ended. Set by `finish`, `fail` and `close`.
        is_cut: True if an error from outside of its program has ended it, and `close` has still to
            raise that in the program. Set by `fail` and `close`.
        result: return value of the function that it runs.
        leaves_all: True if names leave that were not saved: to the block around it, or from a scan.
        left_by_failed: names of a run inside the block which then failed, each with
            its value and the value that it had before.
        needs: for the driver, the `Needs` of the program (see `tapping.kept_taps`).
        seen_names: at the entry of the block, the values of the names that accesses start from.
        is_usual: True if it gets values, or its rows of them, unchanged. Set by the driver.
        is_builder: True if it only collects invokes, before the model runs.
    """

    # defaults of most machines are class attributes, so that making one is cheap
    order = 0
    phase: Phase | None = None
    loops: Sequence[Loop] = ()
    leaves_all = False
    left_by_failed: Mapping[str, tuple[Any, Any]] = MappingProxyType({})
    result: Any = None
    send: Callable[[Any], Request] | None = None
    needs: object = None
    is_usual = False
    is_cut = False
    seen_names: Mapping[str, Any] = MappingProxyType({})
    _outer: Mapping[str, Any] = MappingProxyType({})
    _stack: Stack | None = None
    """None for a plain machine; set when it is made or begins to carry, and kept from then on."""

    def __init__(
        self,
        program: Program,
        user_globals: dict[str, Any],
        saved: Saved,
        running: Running,
        injected: Mapping[str, Any],
        is_plain: bool,
    ) -> None:
        self.program = program
        self.user_globals = user_globals
        self.saved = saved
        self.pending: Request | None = None
        self.step = 0
        self.names: dict[str, Any] = {}
        self.is_done = False
        self.is_plain = is_plain
        # each access asks for these (see `Driver.__init__`)
        self.rows: Rows | None = None
        self.is_builder = False
        self._injected = injected
        self._running = running
        context = self.context = contextvars.copy_context()
        context.run(_current.set, self)
        if is_plain:
            self.send = running.send
        else:
            self._stack = Stack()

    @classmethod
    def start(
        cls,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        saved: Saved,
        injected: Mapping[str, Any],
        *,
        is_plain: bool,
        function: Callable[..., Running] | None = None,
    ) -> Machine:
        """Make the machine of a program; nothing of the block has run yet.

        Args:
            program: the program to run.
            user_globals: globals of the user's module.
            names: values of the names around the block.
            saved: collects the values that the block saves.
            injected: values of the names that lowering puts into a program.
            is_plain: whether it needs no stack.
            function: the program's function with these globals and injected values, if it is known.
        """
        now = None if type(names) is dict else getattr(names, "now", None)
        if now is not None:
            # some names of the enclosing function are looked up in its frame
            injected, function = {**injected, OUTER: now}, None
        if function is None:
            function = program.function(user_globals, injected)
        running = program.started(function, user_globals, names)
        machine = cls(program, user_globals, saved, running, injected, is_plain)
        if program.fetched:
            machine._outer = {
                name: program.initial(name, user_globals, names) for name in program.fetched
            }
        return machine

    def inner(self, number: int) -> Machine:
        """Make the machine of a block inside this one, which starts from the names of this one."""
        frame = self._running.gi_frame
        program = self.program.children[number]
        # the text of a plain block is known with that of the blocks inside it
        is_plain = self.is_plain and program.plain is not None
        inner = Machine.start(
            program,
            self.user_globals,
            {} if frame is None else {**frame.f_locals},
            self.saved,
            self._injected,
            is_plain=is_plain and program not in carried_programs,
        )
        inner.rows = self.rows
        return inner

    def seen_name(self, name: str) -> Any:
        """Return the value that a name had when the block was entered, for a name of an access."""
        return self.seen_names.get(name, MISSING)

    def has_outer(self, name: str) -> bool:
        """Return whether a name of other invokes is bound outside of them, too."""
        return self._outer[name] is not MISSING

    def outer_value(self, name: str) -> Any:
        """Return the value that a name of other invokes has outside of them.

        Raises:
            SharedNameError: the name is not bound there either.
        """
        value = self._outer[name]
        if value is MISSING:
            raise SharedNameError(
                f"name {name!r} is not bound yet: an earlier invoke binds it later in the run, in "
                "a loop or more than once; let both invokes wait at a tracer.barrier(2), after "
                "the binding and before this line"
            )
        return value

    @property
    def outer_now(self) -> Any:
        """A function that looks up names of the enclosing function; None if none is looked up."""
        return self._injected[OUTER]

    @property
    def running(self) -> Running:
        """The generator."""
        return self._running

    def wait(self, request: Request, phase: Phase | None = None) -> None:
        """Wait with a request; the loops that inline this set the two attributes themselves."""
        self.pending, self.phase = request, phase

    def wake(self) -> None:
        """Wait no longer."""
        self.pending = None

    def advance(self, answer: Any) -> Request:
        """Resume with the answer to the last request; return the next request."""
        if self._stack is None:
            if is_known(answer):
                return self.context.run(self._running.send, answer)
            self.begin_carrying()
        return self._carried(False, answer)

    def begin_carrying(self) -> None:
        """Run on a stack from here on: the program has got a value that may run a user's code.

        The next run of the program begins so, with taps on all modules.
        """
        self._stack = Stack()
        self.send = None
        self.is_plain = False
        unplain(self.program)

    def throw(self, error: BaseException) -> Request:
        """Resume by raising an error at the last request; return the next request."""
        if self._stack is None:
            return self.context.run(self._running.throw, error)
        return self._carried(True, error)

    def call(self, function: Callable[..., Any], *args: Any) -> Request:
        """Answer the pending request with the return value of a call, and carry that call.

        The call is the user's code (a property of theirs, say), so it may itself make requests.
        """
        if self._stack is None:
            self._stack = Stack()
            self.send = None
        self._stack.add_call(function, self.context)
        return self._carried(False, *args)

    def _carried(self, is_error: bool, *args: Any) -> Request:
        stack = self._stack
        if stack is None:
            raise InternalError("a plain machine has nothing to carry")
        before = stack.ambient.enter()
        try:
            return stack.resume(self._running, self.context, is_error, args)
        finally:
            self._leave(stack.ambient, before)

    def in_its_state(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the state of torch that the block has set, as one of its statements.

        The driver uses it for the work that it does in place of the block.
        """
        if self._stack is None:
            return function(*args)
        ambient = self._stack.ambient
        before = ambient.enter()
        try:
            return function(*args)
        finally:
            self._leave(ambient, before)

    def _leave(self, ambient: Ambient, before: tuple[int, int, bool]) -> None:
        line = self.line if self.program.state_blocks else 0
        is_set = any(first <= line <= last for first, last in self.program.state_blocks)
        ambient.leave(before, is_set=is_set)

    def request(self, request: Request) -> Any:
        """Make a request from code that was not lowered, and wait for the answer.

        Raises:
            CarriedCallError: the code runs where nothing can wait, inside of a known operation.
        """
        home = None if self._stack is None else self._stack.home
        if home is None:
            unplain(self.program)
            raise CarriedCallError(
                f"code that runs inside of an operation of PyTorch at line {self.line} (a mode, a "
                "hook, a destructor) asks for a model value, and cannot wait for it there; read "
                "the value in the block itself, before this line"
            )
        if home is getcurrent():
            raise NotRunningError("this block is not being advanced; ask from the block itself")
        return home.switch(request)

    @property
    def line(self) -> int:
        """The current line in the user's file."""
        frame = self._running.gi_frame
        return self.program.line if frame is None else frame.f_lineno

    def finish(self, *, is_stopped: bool) -> None:
        """Take the names that may leave from the waiting generator, and end it.

        Args:
            is_stopped: whether it ends before its last statement.
        """
        if is_stopped:
            self.close()
            return
        if self.saved or self.is_builder or self.leaves_all:
            self._take_waiting_names()
        self.is_done = True
        try:
            # it returns, as a function does: an exception would be shown by a debugger
            if self._stack is None:
                # by `next`, which makes no StopIteration of its return
                self.context.run(next, self._running, None)
            else:
                self.advance(None)
        except StopIteration:
            pass
        finally:
            self.leave_context()

    def fail(self, raised: BaseException) -> BaseException:
        """End at an error of the program, with the values saved so far; return the error."""
        self.is_done = True
        raised = original(raised)
        self._take_names_at(raised)
        # an interrupt may have come before the program was resumed, or after it had asked
        self.is_cut = self._running.gi_frame is not None
        if not self.is_cut:
            self.leave_context()
        clean(raised)
        return raised

    def _take_names_at(self, raised: BaseException) -> None:
        """Take the names that may leave from the program's frame, which an error has ended."""
        traceback = raised.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code is self.program.code:
                self._take_names(traceback.tb_frame.f_locals)
            traceback = traceback.tb_next

    def _take_waiting_names(self) -> None:
        """Take the names that may leave from the program, which waits."""
        # The generator's frame gets no name here: one that is held when the generator returns
        # keeps its locals and, from CPython 3.12 on, refers back to the frame of this call.
        if self._running.gi_frame is not None:
            self._take_names(self._running.gi_frame.f_locals)

    def _take_names(self, names: Mapping[str, Any]) -> None:
        if self.left_by_failed:
            names = {**names}
            for name, (value, before) in self.left_by_failed.items():
                # unless a later statement has bound it
                if names.get(name, MISSING) is before:
                    names[name] = value
        # a builder's names are judged when the run is over: its invokes may still save them
        if self.is_builder or self.leaves_all:
            self.names = self.program.names_in(names)
        elif self.saved:
            self.names = self.saved.leaving(names, self.program)

    def leaving(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the names that may leave the block."""
        if self.leaves_all:
            return dict(names)
        return self.saved.leaving(names, self.program)

    def keep_of_failed(self, left: Mapping[str, Any]) -> None:
        """Keep the names of a run inside the block as they were when it failed.

        They are not bound in the block, which may have an `except` for the failure, but leave it as
        if they were: saved ones do, and what one was before the run does not.
        """
        frame = self._running.gi_frame
        names = {} if frame is None else frame.f_locals
        late = {name: (value, names.get(name, MISSING)) for name, value in left.items()}
        self.left_by_failed = {**self.left_by_failed, **late}

    def close(self) -> None:
        """End a machine that waits, so that its `finally` and `with` statements run.

        The names that may leave are those at its end, behind these statements. It can be called
        again after an interrupt, and goes on from there.

        Raises:
            BaseException: what the block raised while it was being closed.
        """
        has_names = self.is_done
        self.is_done = self.is_cut = True
        try:
            self._close(has_names=has_names)
            self.is_cut = False
        finally:
            self.leave_context()

    def close_if_cut(self) -> None:
        """Close a machine that an error from outside of its program has ended."""
        if self.is_cut:
            self.close()

    def leave_context(self) -> None:
        """Drop the context, which refers to the machine."""
        if self._stack is None:
            # no other object has it
            self.context = _ENDED
        else:
            self.context.run(_current.set, None)

    def _close(self, *, has_names: bool) -> None:
        error: BaseException = RunEnded()
        for _ in range(_MOST_CLOSING_REQUESTS):
            if self._running.gi_frame is None and not (self._stack and self._stack.has_calls):
                return
            if not has_names:
                self._take_waiting_names()
            try:
                self.throw(error)
            except BaseException as raised:
                if not has_names:
                    self._take_names_at(raised)
                if not isinstance(raised, (RunEnded, StopIteration)):
                    raise
                # its traceback has this frame, and with it the block's frame and its values
                error.__traceback__ = None
                return
            # the block swallowed the end of the run, or asks from a `finally`
            error = NotRunningError(
                f"the run has ended, so line {self.line} cannot have a model value; "
                "ask for it before the end, outside of 'finally'"
            )


carried_programs: set[Program] = set()
"""Programs that looked plain before a run, and were not."""


def unplain(program: Program) -> None:
    """Remember that a program is not plain after all."""
    carried_programs.add(program)
