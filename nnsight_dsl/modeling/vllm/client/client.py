"""A trace on an engine: each block is sent with its request, and its results come back.

The block of a trace, or of each invoke in it, is the program of one vLLM request:

    with model.trace(max_tokens=3) as tracer:
        with tracer.invoke("The Eiffel Tower is in"):        # one request, with one program
            first = model.logits.output.save()
        with tracer.invoke("The Colosseum is in"):           # another one
            second = model.logits.output.save()

`EngineTracer` lowers the blocks, checks that the engine can serve each place they name, and
collects a `Sent` for each. `Requests` submits them, steps the engine until all are done, and
fetches the outcomes. The programs share a batch and nothing else: each sees its own tokens, counts
its own steps and ends when its own request ends. So barriers, names shared between invokes and
invokes without a prompt are refused here, before anything is sent.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnsight_dsl.modeling.vllm.client.effects import Reach, reach_of
from nnsight_dsl.modeling.vllm.client.parameters import prepared, prompt_of, refusing_others
from nnsight_dsl.modeling.vllm.client.service import Sent, Service
from nnsight_dsl.modeling.vllm.engine.request_driver import compiled, operation
from nnsight_dsl.modeling.vllm.engine_places import EnginePlace, EngineRoot
from nnsight_dsl.modeling.vllm.payload import (
    Outcome,
    Part,
    add_changes,
    load_outcome,
)
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.errors import (
    BarrierError,
    EngineError,
    InternalError,
    SharedNameError,
)
from nnsight_dsl.runtime.locations import Place, name_of, places_at
from nnsight_dsl.runtime.machines.machine import current_machine, set_current
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tracebacks import traceback_at
from nnsight_dsl.tracing.barrier import BarrierCall
from nnsight_dsl.tracing.runnable import Input
from nnsight_dsl.tracing.tracer import Tracer
from nnsight_dsl.transforms.program import Program

if TYPE_CHECKING:
    from nnsight_dsl.tracing.intervene import Intervention

_FIRST_WAIT = 0.005
_LONGEST_WAIT = 0.1
"""Seconds between two polls for programs that have ended; doubled from the first to the longest."""


class EngineTracer(Tracer):
    """One trace on an engine. Made by `model.trace(...)`."""

    _model: EngineRoot

    def __init__(
        self,
        model: EngineRoot,
        service: Service,
        function: str,
        given: Input,
        options: dict[str, Any],
    ) -> None:
        super().__init__(model, function, given, options)
        if self._is_validated or self._log is not None or self._is_planned:
            word = "log" if self._log is not None else "plan" if self._is_planned else "scan"
            raise EngineError(
                f"{word!r} is an option of a run in this process, and this one is the engine's; "
                "leave it out"
            )
        if options.get("stop") == "auto":
            raise EngineError(
                "stop='auto' ends a forward early, which an engine computes for all of its "
                "requests; leave it out, or write stop=['auto'] to stop at that text"
            )
        self._service = service
        self._sent: list[Sent] = []

    def barrier(self, participants: int) -> BarrierCall:
        """Refuse: requests of an engine do not synchronise.

        Raises:
            BarrierError: always.
        """
        raise BarrierError(
            "a barrier was made in a trace on an engine, whose requests do not wait for each "
            "other; save the value in a separate trace, before this one"
        )

    def _run_once(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        left, failure = self._collected(program, user_globals, names)
        if failure is not None:
            return {}, failure
        self._service.serve(self._sent, self._parts(), self._function)
        own, failure = self._outcomes()
        left.update(own)
        self._sent = []
        if not self._leaves_all:
            self._saved.clear()
        return left, failure

    def _collected(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Collect the requests of a block.

        A block with invokes is run here, to call `tracer.invoke` for each; one without is itself
        the program of the one request.

        Returns:
            The names saved by the code around the invokes, and the exception that it raised.
        """
        self._sent = []
        if self._given and not program.has_invokes:
            self._add(program, user_globals, names, self._given)
            return {}, None
        run = self._block_run = self._new_run()
        driver = run.driver = Driver(self._model)
        machine = run.machine_of(program, user_globals, names)
        # this machine collects invokes: no model runs, so it cannot ask for values
        machine.is_builder = True
        try:
            driver.build(machine)
        finally:
            self._block_run = None
        if driver.failure is not None:
            return {}, driver.failure
        if not self._sent:
            raise messages.no_input()
        return machine.leaving(machine.names), None

    def _outcomes(self) -> tuple[dict[str, Any], BaseException | None]:
        """Apply the outcomes of the requests, in the order of the requests.

        Warnings are issued again, and additions to containers around the blocks are repeated.

        Returns:
            The names that leave the blocks, and the first failure.
        """
        left: dict[str, Any] = {}
        failure: BaseException | None = None
        for one in self._sent:
            if one.left is None:
                continue
            outcome = self._loaded(one)
            left.update(outcome.names)
            for name in outcome.saved if self._leaves_all else ():
                self._saved.add(outcome.names[name])
            add_changes(one.names, outcome.changed)
            self._result = outcome.returned
            failure = failure or outcome.failure
            for text, category, filename, line in outcome.warnings:
                warnings.warn_explicit(text, category, filename, line)
        return left, failure

    def _loaded(self, one: Sent) -> Outcome:
        """Return the outcome of a request, unpickled once, with the places of this model."""
        if not isinstance(one.left, bytes):
            raise InternalError("a request has left nothing yet")
        if one.outcome is None:
            one.outcome = load_outcome(one.left, self._model, self)
        return one.outcome

    def _add(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any], one: Input
    ) -> None:
        running = current_machine()
        if running is not None and not running.is_builder:
            raise messages.nested_invoke()
        if not one:
            raise EngineError(
                f"the invoke at line {program.line} has no prompt, and the requests of an engine "
                "are not a batch that it could see as a whole; put what it does into the invokes "
                "that have one"
            )
        if program.fetched:
            raise SharedNameError(
                f"the invoke at line {program.line} reads {min(program.fetched)!r} of another "
                "invoke, and the requests of an engine do not wait for each other; save the value "
                "in a separate trace, before this one"
            )
        self._check_served(program, user_globals, names)
        part = Part(program, user_globals, dict(names), leaves_all=self._leaves_all)
        part.reach = self._reach_of(part)
        options = {**self._options, **one.kwargs}
        self._sent.append(Sent(part, prompt_of(one, self._tokenizer), options, names))

    def _parts(self) -> list[Part]:
        """Return the programs that run before each request's block: edits, then interventions."""
        found = [
            Part(one.program, one.user_globals, dict(one.names), one.is_for_each_step)
            for one in self._model._edits
        ]
        for one in self._interventions:
            names = one.names({"model": self._model, "tracer": self})
            found.append(Part(one.program, one.user_globals, names))
        for part in found:
            self._check_served(part.program, part.user_globals, part.names)
            part.reach = self._reach_of(part)
        return found

    def _reach_of(self, part: Part) -> Reach:
        machine = self._new_run().machine_of(part.program, part.user_globals, part.names)
        return reach_of(machine, part.user_globals, part.names)

    def _check_served(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> None:
        """Refuse a program that names a place which the engine cannot serve.

        Places that the text does not name, such as those in a function the block calls, are checked
        by the worker.

        Raises:
            EngineError: the program names such a place; the error is at the user's line.
        """
        for one in program.all_programs():
            for state in one.states:
                if state.root is None:
                    continue
                start = program.initial(state.root, user_globals, names, fall_back=True)
                found = places_at(start, state.path) if isinstance(start, Place) else None
                for place in found or ():
                    reason = self._unserved(place, state.port)
                    if reason is not None:
                        at = traceback_at(program.filename, state.line, program.name)
                        raise EngineError(reason).with_traceback(at)

    def _unserved(self, place: Place, port: str) -> str | None:
        """Return the reason why the engine cannot serve a place; None if it can."""
        if isinstance(place, OperationPlace):
            return operation(place, self._service.is_compiled, self._service.is_sharded)
        is_inside = place._module is not None and not isinstance(place, EnginePlace)
        if self._service.is_compiled and is_inside:
            return compiled(name_of(place, port))
        return None

    def run_each(self, programs: Sequence[Intervention[..., Any]]) -> tuple[Any, ...]:
        """Serve the prompt once with each program; return the results, in the same order."""
        self._sent = []
        for one in programs:
            names = one.names({"model": self._model, "tracer": self})
            self._add(one.program, one.user_globals, names, self._given)
        self._service.serve(self._sent, self._parts(), self._function)
        _, failure = self._outcomes()
        if failure is not None:
            raise failure
        return tuple(one.outcome.returned if one.outcome else None for one in self._sent)

    def _plain(self) -> Sent:
        """Return the request of a trace that has no block."""
        prompt = prompt_of(self._given, self._tokenizer)
        return Sent(None, prompt, {**self._options, **self._given.kwargs})

    def _tokenizer(self) -> Any:
        return self._model.tokenizer

    def _run_without_block(self) -> Any:
        """Serve the prompt with the edits and interventions given; return its `RequestOutput`."""
        one = self._plain()
        self._sent = [one]
        self._service.serve(self._sent, self._parts(), self._function)
        _, failure = self._outcomes()
        if failure is not None:
            raise failure
        return one.output


class Requests:
    """Submits the requests of traces to one `LLMEngine`, whose core may be in another process.

    Args:
        engine: the `LLMEngine`.
        seconds: how long a block may run without asking for a value.
    """

    def __init__(self, engine: Any, seconds: float) -> None:
        self._engine = engine
        engine.add_request = refusing_others(engine.add_request)
        engine.collective_rpc("nnsight_dsl_install", args=(seconds,))

    def serve(
        self, sent: list[Sent], parts: list[Part], rename: Mapping[str, Any], limit: int | None
    ) -> None:
        """Run requests to their ends, and fill in their outputs and outcomes.

        If anything is raised, all of them are aborted, and their programs ended.

        Args:
            sent: the requests.
            parts: programs to run before the block of each request.
            rename: the model's aliases, which paths in the programs may use.
            limit: default of `max_tokens`; None for vLLM's.
        """
        from vllm.sampling_params import RequestOutputKind

        ids = {}
        for one in sent:
            request = prepared(one, parts, rename, limit)
            # an output for each token costs more than a program; with n > 1 each has one completion
            request.params.output_kind = RequestOutputKind.FINAL_ONLY
            ids[one.key] = request
        # in a session, the machine of its block is current: taps would take the forwards of an
        # engine in this process for that machine's own calls, and offer nothing
        outer = set_current(None)
        try:
            for one in sent:
                request = ids[one.key]
                self._engine.add_request(one.key, request.prompt, request.params, **request.options)
            self._step_until_done({one.key: one for one in sent})
        except BaseException:
            self._engine.abort_request(list(ids))
            self._engine.collective_rpc("nnsight_dsl_finish", args=(dict.fromkeys(ids),))
            raise
        finally:
            set_current(outer)
        results = {one.key: pickle.dumps(one.output) for one in sent if parts or one.part}
        if not results:
            return
        left = self._engine.collective_rpc("nnsight_dsl_finish", args=(results,))
        # all ranks answer, rank 0 with the outcomes and the others with None
        found = next(one for one in left if one is not None)
        for one in sent:
            one.left = found[one.key]

    def _step_until_done(self, waiting: dict[str, Sent]) -> None:
        waiting = dict(waiting)
        looks = Looks()
        while waiting:
            for output in self._engine.step():
                one = waiting.get(output.request_id)
                if one is None:
                    continue
                one.output = output
                if output.finished:
                    del waiting[output.request_id]
            for key in self._ended() if waiting and looks.is_due() else ():
                # its programs have stopped or failed, so its further tokens are not needed
                if waiting.pop(key, None) is not None:
                    self._engine.abort_request([key])

    def _ended(self) -> list[str]:
        found: list[str] = self._engine.collective_rpc("nnsight_dsl_ended")[0]
        return found


class Looks:
    """The times at which to poll for programs that have ended early, with exponential backoff.

    A poll is a call to the worker. It is made often at first, and rarely in a long request.

    Attributes:
        wait: seconds until the next poll.
    """

    def __init__(self) -> None:
        self.wait = _FIRST_WAIT
        self._next = time.monotonic() + self.wait

    def is_due(self) -> bool:
        """Return whether a poll is due; if it is, schedule the next one."""
        now = time.monotonic()
        if now < self._next:
            return False
        self.wait = min(self.wait * 2, _LONGEST_WAIT)
        self._next = now + self.wait
        return True
