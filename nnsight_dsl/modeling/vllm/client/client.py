"""A trace on an engine: programs are sent with their requests, and what they leave comes back.

The block of a trace, and that of each invoke, is the program of one request. They share a batch
and nothing else: each sees its own tokens, counts its own steps and ends by itself.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from nnsight_dsl.modeling.vllm.client.effects import NOTHING, Reach, reach_of
from nnsight_dsl.modeling.vllm.client.service import Sent, Service
from nnsight_dsl.modeling.vllm.engine.request_driver import compiled, operation
from nnsight_dsl.modeling.vllm.engine_places import EnginePlace, EngineRoot
from nnsight_dsl.modeling.vllm.payload import (
    KEY,
    WHOLE,
    Outcome,
    Part,
    add_changes,
    dump_parts,
    load_outcome,
)
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.errors import (
    BarrierError,
    BatchingError,
    EngineError,
    InternalError,
    SharedNameError,
)
from nnsight_dsl.runtime.locations import Place, name_of, places_at
from nnsight_dsl.runtime.machines.machine import current_machine, set_current
from nnsight_dsl.runtime.tapping.operations import OperationPlace
from nnsight_dsl.runtime.tracebacks import traceback_at
from nnsight_dsl.tracing.tracer import BarrierCall, Input, Tracer
from nnsight_dsl.transforms.program import Program

if TYPE_CHECKING:
    from nnsight_dsl.tracing.intervene import Intervention

_WORDS = {"max_new_tokens": "max_tokens"}
_FIRST_WAIT = 0.005
_LONGEST_WAIT = 0.1
"""Seconds between two looks at which programs have ended."""
_keys = count()


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
        is_planned = options.pop("plan", False)
        super().__init__(model, function, given, options)
        if self._is_validated or self._log is not None or is_planned:
            word = "log" if self._log is not None else "plan" if is_planned else "scan"
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
        """Refuse: requests of an engine do not wait for each other.

        Raises:
            BarrierError: always.
        """
        raise BarrierError(
            "a barrier was made in a trace on an engine, whose requests do not wait for each "
            "other; save the value in a trace of its own, before this one"
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
        """Collect the requests of a block; return the names that leave what is around them."""
        self._sent = []
        if self._given and not program.has_invokes:
            self._add(program, user_globals, names, self._given)
            return {}, None
        driver = self._driver = Driver(self._model)
        machine = self._machine_of(program, user_globals, names)
        machine.is_builder = True
        try:
            driver.build(machine)
        finally:
            self._driver = None
        if driver.failure is not None:
            return {}, driver.failure
        if not self._sent:
            raise messages.no_input()
        return machine.leaving(machine.names), None

    def _outcomes(self) -> tuple[dict[str, Any], BaseException | None]:
        """Take in what the requests have left, in their order; return names, and what was raised.

        Warnings are given, and what was added to containers around the blocks is added here.
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
        """Return what a request's programs have left, with places of the model here."""
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
                "are no batch that it could see as a whole; put what it does into the invokes "
                "that have one"
            )
        if program.fetched:
            raise SharedNameError(
                f"the invoke at line {program.line} reads {min(program.fetched)!r} of another "
                "invoke, and the requests of an engine do not wait for each other; save the value "
                "in a trace of its own, before this one"
            )
        self._check_served(program, user_globals, names)
        part = Part(program, user_globals, dict(names), leaves_all=self._leaves_all)
        part.reach = self._reach_of(part)
        options = {**self._options, **one.kwargs}
        self._sent.append(Sent(part, _prompt_of(one), options, names))

    def _parts(self) -> list[Part]:
        """Return the programs that run before the block of each request."""
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
        machine = self._machine_of(part.program, part.user_globals, part.names)
        return reach_of(machine, part.user_globals, part.names)

    def _check_served(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> None:
        """Refuse at the client what the engine cannot offer, as far as the text tells.

        Raises:
            EngineError: a place is asked for that is not served, at the user's line.
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
        """Say why a place is not served, None if it is."""
        if isinstance(place, OperationPlace):
            return operation(place, self._service.is_compiled, self._service.is_sharded)
        is_inside = place._module is not None and not isinstance(place, EnginePlace)
        if self._service.is_compiled and is_inside:
            return compiled(name_of(place, port))
        return None

    def run_each(self, programs: Sequence[Intervention[..., Any]]) -> tuple[Any, ...]:
        """Serve the prompt once with each of some programs; return what they have returned."""
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
        return Sent(None, _prompt_of(self._given), {**self._options, **self._given.kwargs})

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
    """Serves the requests of traces on one engine of vLLM, in this process or in its own."""

    def __init__(self, engine: Any, seconds: float) -> None:
        self._engine = engine
        engine.collective_rpc("nnsight_dsl_install", args=(seconds,))

    def serve(
        self, sent: list[Sent], parts: list[Part], rename: Mapping[str, Any], limit: int | None
    ) -> None:
        """Run some requests to their ends, and fill in their outputs and outcomes.

        Args:
            sent: the requests.
            parts: programs that run before that of each.
            rename: the aliases that paths are written with.
            limit: how many tokens are generated where a request does not say.
        """
        ids = {}
        for one in sent:
            params, prompt = prepared(one, parts, rename, limit)
            ids[one.key] = (params, prompt)
        # the block of a session is running: what it calls by itself would be offered to nobody
        outer = set_current(None)
        try:
            for one in sent:
                params, prompt = ids[one.key]
                self._engine.add_request(one.key, prompt, params)
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
                # what its programs were for is done, or has failed
                if waiting.pop(key, None) is not None:
                    self._engine.abort_request([key])

    def _ended(self) -> list[str]:
        found: list[str] = self._engine.collective_rpc("nnsight_dsl_ended")[0]
        return found


class Looks:
    """When to look for programs that have ended early: often at first, seldom in a long request."""

    def __init__(self) -> None:
        self.wait = _FIRST_WAIT
        self._next = time.monotonic() + self.wait

    def is_due(self) -> bool:
        """Tell whether it is time to look, and put off the next time."""
        now = time.monotonic()
        if now < self._next:
            return False
        self.wait = min(self.wait * 2, _LONGEST_WAIT)
        self._next = now + self.wait
        return True


def prepared(
    one: Sent, parts: list[Part], rename: Mapping[str, Any], limit: int | None
) -> tuple[Any, Any]:
    """Give a request its key; return its sampling parameters, with its programs, and its prompt."""
    own = [*parts, *([one.part] if one.part is not None else [])]
    one.key = f"nnsight_dsl-{next(_keys)}"
    return _params_of(one, own, rename, limit)


def _params_of(
    one: Sent, parts: list[Part], rename: Mapping[str, Any], limit: int | None
) -> tuple[Any, Any]:
    """Return a request's sampling parameters, with its programs, and its prompt."""
    from vllm import SamplingParams

    options = {_WORDS.get(name, name): value for name, value in one.options.items()}
    if limit is not None:
        options.setdefault("max_tokens", limit)
    prompt = (
        {"prompt": one.prompt} if isinstance(one.prompt, str) else {"prompt_token_ids": one.prompt}
    )
    if not parts:
        return SamplingParams(**options), prompt
    if options.get("n", 1) != 1:
        raise EngineError(
            f"n={options['n']} asks for several continuations of a prompt that has a program; "
            "write an invoke for each"
        )
    reach = NOTHING
    for part in parts:
        reach |= part.reach
    sent = {
        "key": one.key,
        "payload": dump_parts(parts, rename),
        "reach": (reach.meets_prompt, reach.may_write),
        WHOLE: reach.meets_prompt and reach.may_write,
    }
    extra = {**(options.pop("extra_args", None) or {}), KEY: sent}
    if reach.meets_prompt:
        # what was computed for somebody else is offered to nobody here
        options["skip_reading_prefix_cache"] = True
    if reach.may_write:
        # others must not meet what it writes into: the salt is part of what a block goes by
        prompt = {**prompt, "cache_salt": one.key}
    return SamplingParams(**options, extra_args=extra), prompt


def _prompt_of(one: Input) -> Any:
    """Return the one prompt of an input: a text, or token ids.

    Raises:
        BatchingError: several were given.
    """
    value: Any = one.args[0] if one.args else None
    if len(one.args) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and len(value) == 1 and not isinstance(value[0], int):
        value = value[0]
    is_ids = isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value)
    if len(one.args) == 1 and (isinstance(value, str) or (is_ids and value)):
        return value if isinstance(value, str) else list(value)
    raise BatchingError(
        "a request of an engine has one prompt, a text or a list of token ids, and "
        f"{one.args!r:.80} was given; write 'with tracer.invoke(prompt):' for each prompt"
    )
