"""A trace on an engine that runs beside an event loop: `VLLM(..., mode="async")`.

    async def ask(prompt):
        with model.trace(prompt, max_tokens=5) as tracer:
            hidden = model.transformer.h[3].output[:, -1].save()
        async for output in tracer:         # vLLM's RequestOutput, as they come
            print(output.outputs[0].text)
        return hidden

The end of a block submits its requests as a task of the running event loop, and returns at once.
`async for` yields their outputs; `await tracer` waits for the last output and returns it (or a
list, one for each invoke).

After the last output, saved names are bound in the function that has the block, if that function is
the one that waits. Otherwise (`asyncio.gather`, `asyncio.wait_for`, another function) they are in
`tracer.saves`, since the function may have reached another block with the same names by then. The
last output of each request has the names that this request saved, as `output.saves`.

An exception of a block is raised by the `async for` or the `await`. Leaving the `async for` early,
or cancelling the awaiting task, aborts the requests.

vLLM's sockets and tasks belong to one event loop, so an engine can be used in one loop only.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from types import FrameType
from typing import Any, Protocol

from nnsight_dsl.modeling.vllm.client.client import EngineTracer, Looks
from nnsight_dsl.modeling.vllm.client.parameters import Prepared, prepared, refusing_others
from nnsight_dsl.modeling.vllm.client.service import Sent, Service
from nnsight_dsl.modeling.vllm.engine_places import EngineRoot
from nnsight_dsl.modeling.vllm.payload import Part
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.tracing.runnable import Input
from nnsight_dsl.transforms.frame_names import set_names
from nnsight_dsl.transforms.program import Program

_SESSION = (
    "a trace on an asynchronous engine stands inside of another block, which would not wait for "
    "it; open it by itself, in code that runs in an event loop"
)


class Stream:
    """The submitted requests of one trace.

    Attributes:
        sent: the requests.
        outputs: queue of their outputs; None after the last.
        task: the task that serves them; None until `StreamedRequests.start` sets it.
        finished: called with each request that is over, before its last output is queued.
    """

    def __init__(self, sent: list[Sent], finished: Callable[[Sent], None]) -> None:
        self.sent = sent
        self.outputs: asyncio.Queue[Any] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None
        self.finished = finished


class StreamService(Service, Protocol):
    """An asynchronous engine, started by the first request that is served."""

    def stream(self, stream: Stream, parts: list[Part], function: str) -> None:
        """Submit the requests of a stream, and return at once.

        Args:
            stream: the requests, and the queue for their outputs.
            parts: programs to run before the block of each request.
            function: `"trace"` or `"generate"`, which sets the default number of tokens.
        """


class StreamTracer(EngineTracer):
    """One trace on an asynchronous engine: iterate over it, or await it, below its block.

    Attributes:
        saves: the saved names with their values, filled in when all requests are over.
    """

    _stream: Stream | None = None
    _at: FrameType | None = None
    """The frame that has the block, in which saved names are bound; None after the first wait."""
    _is_over = False
    """True once the outcomes have been applied; set by `_take_in` only, which runs once."""

    def __init__(
        self,
        model: EngineRoot,
        service: StreamService,
        function: str,
        given: Input,
        options: dict[str, Any],
    ) -> None:
        super().__init__(model, service, function, given, options)
        self._streams = service
        self.saves: dict[str, Any] = {}
        self._failure: BaseException | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._outputs(sys._getframe(1))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._until_last(sys._getframe(1)).__await__()

    def backend(self) -> AsyncIterator[Any]:
        """Iterate over the outputs; another way to write `async for output in tracer`."""
        return self._outputs(sys._getframe(1))

    async def _until_last(self, frame: FrameType) -> Any:
        """Wait for all requests; return the last output of the one, or of each."""
        async for _ in self._outputs(frame):
            pass
        outputs = [one.output for one in self._sent]
        return outputs[0] if len(outputs) == 1 else outputs

    async def _outputs(self, frame: FrameType) -> AsyncIterator[Any]:
        stream = self._stream
        if stream is None or stream.task is None:
            raise EngineError(
                "the requests of this trace are submitted when its block is over; wait for them "
                "below the block"
            )
        try:
            while (output := await stream.outputs.get()) is not None:
                yield output
        finally:
            stream.task.cancel()
        # the sentinel again, for another iteration at the same time or later
        stream.outputs.put_nowait(None)
        await asyncio.wait([stream.task])
        self._take_in(stream.task)
        is_here, self._at = frame is self._at, None
        if is_here:
            set_names(frame, self.saves)
        if self._failure is not None:
            raise self._failure

    def _take_in(self, task: asyncio.Task[None]) -> None:
        """Apply the outcomes of the requests, once."""
        if self._is_over:
            return
        self._is_over = True
        error = task.exception() if not task.cancelled() else asyncio.CancelledError()
        own, failure = self._outcomes()
        self.saves.update(own)
        self._failure = error or failure
        if self._failure is not None:
            clean(self._failure)
        self._saved.clear()

    # to the engine

    def _finished(
        self,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        frame: FrameType | None = None,
    ) -> tuple[dict[str, Any], BaseException | None]:
        self._at = frame
        return super()._finished(program, user_globals, names, frame)

    def _run_once(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        left, failure = self._collected(program, user_globals, names)
        if failure is None:
            self._submit()
        return left, failure

    def _submit(self) -> None:
        self._stream = Stream(self._sent, self._is_finished)
        self._streams.stream(self._stream, self._parts(), self._function)

    def _is_finished(self, one: Sent) -> None:
        """Attach the saved names of a request to its last output."""
        if one.left is not None and one.output is not None:
            one.output.saves = dict(self._loaded(one).names)

    def _run_inside(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any], saved: Any
    ) -> tuple[dict[str, Any], BaseException | None]:
        raise EngineError(_SESSION)

    def _run_without_block(self) -> Any:
        """Submit the prompt with the edits and interventions given."""
        self._sent = [self._plain()]
        self._submit()
        return self

    def _run_alone(self, intervention: Any) -> Any:
        """Submit one intervention without a block; return an awaitable of its result."""
        super()._run_alone(intervention)
        return self._returned()

    async def _returned(self) -> Any:
        await self
        return self._result


class StreamedRequests:
    """Submits the requests of traces to an `AsyncLLM`, whose core is always in another process.

    Args:
        engine: the `AsyncLLM`.
        seconds: how long a block may run without asking for a value.
    """

    def __init__(self, engine: Any, seconds: float) -> None:
        self._engine = engine
        engine.add_request = refusing_others(engine.add_request)
        self._seconds = seconds
        # the loop of the first trace; all others must be opened in the same one
        self._loop: asyncio.AbstractEventLoop | None = None
        # the call that prepares the workers; made by the first trace, awaited by all
        self._ready: asyncio.Future[Any] | None = None
        # keys of requests with programs that are not finished, for the polls of `_end_early`
        self._open: set[str] = set()
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, stream: Stream, parts: list[Part], rename: Mapping[str, Any], limit: int | None
    ) -> None:
        """Submit the requests of a trace.

        Args:
            stream: the requests, and the queue for their outputs.
            parts: programs to run before the block of each request.
            rename: the model's aliases, which paths in the programs may use.
            limit: default of `max_tokens`; None for vLLM's.

        Raises:
            EngineError: no event loop is running, or another one than at the first trace.
        """
        loop = self._running_loop()
        requests = [(one, prepared(one, parts, rename, limit)) for one in stream.sent]
        if self._ready is None:
            install = self._engine.collective_rpc("nnsight_dsl_install", args=(self._seconds,))
            self._ready = loop.create_task(install)
        has_programs = bool(parts)
        task = loop.create_task(self._serve(stream, requests, has_programs))
        stream.task = task
        # the event loop keeps only a weak reference to a task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: stream.outputs.put_nowait(None))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise EngineError(
                "an engine made with mode='async' was asked for a trace where no event loop is "
                "running; open the trace in an 'async def', or make the engine with mode='sync'"
            ) from None
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise EngineError(
                "an asynchronous engine was used in one event loop before, and is asked for a "
                "trace in another; keep to one, as with a single asyncio.run(main())"
            )
        return loop

    async def _serve(
        self, stream: Stream, requests: list[tuple[Sent, Prepared]], has_programs: bool
    ) -> None:
        if self._ready is not None:
            await asyncio.shield(self._ready)
        tasks = [
            asyncio.ensure_future(
                self._serve_one(stream, *request, has_programs or request[0].part is not None)
            )
            for request in requests
        ]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise

    async def _serve_one(
        self, stream: Stream, one: Sent, request: Prepared, has_programs: bool
    ) -> None:
        result = None
        if has_programs:
            self._open.add(one.key)
            if self._watch is None or self._watch.done():
                self._watch = asyncio.ensure_future(self._end_early())
        try:
            async for output in self._engine.generate(
                request.prompt, request.params, one.key, **request.options
            ):
                one.output = output
                output.saves = {}
                if not output.finished:
                    stream.outputs.put_nowait(output)
            result = pickle.dumps(one.output)
        finally:
            self._open.discard(one.key)
            if has_programs:
                rpc = self._engine.collective_rpc("nnsight_dsl_finish", args=({one.key: result},))
                left = await rpc
                found = next(each for each in left if each is not None)
                one.left = found[one.key]
        stream.finished(one)
        stream.outputs.put_nowait(one.output)

    async def _end_early(self) -> None:
        """Abort the requests whose programs have stopped or failed; their tokens are not needed.

        Runs as one task for all streams, as long as a request with programs is open.
        """
        looks = Looks()
        while self._open:
            await asyncio.sleep(looks.wait)
            looks.is_due()
            ended = (await self._engine.collective_rpc("nnsight_dsl_ended"))[0]
            for key in self._open.intersection(ended):
                await self._engine.abort(key)
