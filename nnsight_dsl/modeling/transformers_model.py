"""`TransformersModel`: the wrapper of models of the transformers library, for any of its tasks.

    model = TransformersModel("google-bert/bert-base-uncased", task="fill-mask")
    with model.trace("the [MASK] sat"):
        hidden = model.bert.encoder.layer[3].output.save()
    records = model.pipe("the [MASK] sat")              # those of transformers' pipeline

A task is one of `transformers.pipeline`. It says which class the model has and what preprocesses
its inputs (`tasks.py`): a tokenizer, an image processor, a feature extractor or a processor.

A model given by name is built on the meta device, and its weights are loaded at the first run.
The inputs of all invokes become one call of the model (`merging.py`); images and sound become
arguments of the model first (`task_inputs.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from nnsight_dsl.blocks.callers import opens_block
from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling import adapters, batching, checkpoints, loading, pipe, tasks
from nnsight_dsl.modeling.architecture import Architecture
from nnsight_dsl.modeling.base import NNsight, module_of
from nnsight_dsl.modeling.generation import Generation
from nnsight_dsl.modeling.inputs import blaming
from nnsight_dsl.modeling.merging import merge
from nnsight_dsl.modeling.task_inputs import given_to_task, is_text_or_tensor
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.tracing.runnable import Batch, Input


class TransformersModel(NNsight):
    """A model of transformers, with what preprocesses its inputs.

    From a name or path the model is built without weights (on the meta device) and loaded at its
    first run, so that it can be printed and programs can be written before anything is loaded.

    Args:
        model: a repository name, a path, or a module that is already loaded, wrapped or not.
        task: a task of `transformers.pipeline`; by default that of the class which the module has,
            or which the checkpoint was saved from.
        tokenizer: its tokenizer; loaded along with a name or path if the task uses one, as are the
            three below.
        processor: its processor, for texts with images or sound.
        image_processor: its image processor.
        feature_extractor: its feature extractor, for sound.
        automodel: class of transformers to load with, or its name; by default that of the task.
        peft: an adapter to put into the model, see `load_adapter`; several as a dict, by name.
        revision: branch, tag or commit of the repository.
        dispatch: load the weights at once.
        device: one device for all weights.
        device_map: placement of the weights, for `from_pretrained`.
        dtype: precision of the weights or its name; `torch_dtype` is the same. A name of quantised
            weights is `"nf4"`, `"fp4"`, `"int8"` or `"fp8"`.
        rename: aliases of modules, see `NNsight`.
        envoys: classes of envoys, see `NNsight`.
        tokenizer_kwargs: options of the tokenizer's `from_pretrained`, where it is loaded along.
        **kwargs: passed on to `from_pretrained`, as `config` and `attn_implementation`;
            `compute_dtype` is the precision in which weights of 4 bits are multiplied.

    Raises:
        InputError: transformers has no such task, or no model of this type for it.
        TokenizerNotFoundError: at the first text, if a module was given without a tokenizer.

    Example:
        >>> model = TransformersModel("google-bert/bert-base-uncased", task="fill-mask")
        >>> with model.trace("The [MASK] sat"):
        ...     logits = model.output.logits.save()
    """

    _own = NNsight._own | frozenset(
        {
            *tasks.PARTS,
            "generator",
            "repo_id",
            "revision",
            "task",
            "_adapters",
            "_load_options",
            "_source",
        }
    )

    tokenizer: Any
    processor: Any
    image_processor: Any
    feature_extractor: Any
    task: str | None
    repo_id: str | None
    revision: str | None

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | Envoy,
        *,
        task: str | None = None,
        tokenizer: Any = None,
        processor: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
        automodel: Any = None,
        peft: Any = None,
        revision: str | None = None,
        dispatch: bool = False,
        device: Any = None,
        device_map: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        rename: Mapping[Any, str | Sequence[str]] | None = None,
        envoys: Mapping[Any, type[Envoy]] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        dtype = torch_dtype if dtype is None else dtype
        options = loading.options_of(
            kwargs, revision=revision, device=device, device_map=device_map, dtype=dtype
        )
        parts = {
            "tokenizer": tokenizer,
            "processor": processor,
            "image_processor": image_processor,
            "feature_extractor": feature_extractor,
        }
        found = tasks.find_task(task) if task is not None else None
        source: tuple[Any, str] | None = None
        if not isinstance(model, (str, os.PathLike)):
            if isinstance(model, TransformersModel) and tokenizer is None:
                parts = {key: one or model.__dict__[key] for key, one in parts.items()}
            loading.check_loaded(options)
            module = module_of(model)
        else:
            found, source = checkpoints.source_of(str(model), found, automodel, options)
            module = loading.load(source, options) if dispatch else loading.build(source, options)
        own_adapters = adapters.named(peft)
        adapters.put(module, own_adapters, options, has_weights=source is None or dispatch)
        if source is not None:
            parts = checkpoints.parts_of(
                source[1], found, parts, options, module, tokenizer_kwargs or {}
            )
        super().__init__(module, rename=rename, envoys=envoys)
        # None once the weights are loaded; only `dispatch` sets it to None
        self._source = None if dispatch else source
        self._load_options = options
        self._adapters = own_adapters
        self._take_parts(parts)
        self.generator = self._generation_class()
        self.repo_id = None if source is None else source[1]
        self.revision = revision
        self.task = tasks.task_of_module(self._architecture.inner) if found is None else found.name

    def _take_parts(self, parts: Mapping[str, Any]) -> None:
        """Set what preprocesses the inputs; what is not given may be a part of the processor."""
        for key, one in parts.items():
            if one is None and parts["processor"] is not None and key != "feature_extractor":
                one = getattr(parts["processor"], key, None)
            setattr(self, key, one)

    @property
    def dispatched(self) -> bool:
        """True once the weights are loaded."""
        origin = self._origin
        return self._source is None if origin is None else bool(origin.dispatched)

    @property
    def attn_implementation(self) -> str | None:
        """The implementation of attention that the model uses, such as `"eager"`."""
        found = getattr(getattr(self._module, "config", None), "_attn_implementation", None)
        return None if found is None else str(found)

    @property
    def pipeline(self) -> Any:
        """The pipeline of transformers for the model's task, on the module as it is now.

        Raises:
            InputError: transformers has no task for this model.
        """
        return pipe.pipeline_of(self, self.__dict__.setdefault("_known_options", {}))

    def dispatch(self) -> None:
        """Load the weights now, if they are not loaded yet."""
        source = self._source
        if source is None:
            return
        module = loading.load(source, self._load_options)
        adapters.put(module, self._adapters, self._load_options, has_weights=True)
        self._rebind(module)
        self._family = register_modules(module)
        # last, so that an interrupted load is repeated
        self._source = None

    def load_adapter(self, adapter: Any, name: str = "default") -> None:
        """Put an adapter of PEFT into the model, in place; the base model's paths stay.

        An adapter of the same name is replaced. The last one that was put in is active;
        `model.set_adapter("name")`, of transformers, activates another one, or several as a list.

        Args:
            adapter: a repository name or path; a configuration of PEFT, for new weights; None
                takes the adapter of the name out.
            name: its name, by which its parts are reached: `lora_A.default`.

        Raises:
            InputError: it does not fit the model, or learns a prompt, and is no part of a model.
            ImportError: peft is not installed.

        Example:
            >>> model.load_adapter("me/gpt2-lora")
            >>> with model.trace("Hello"):
            ...     down = model.transformer.h[0].attn.c_attn.lora_A.default.output.save()
        """
        origin = self._origin
        if origin is not None:
            # the model is the original's, which loads it
            origin.load_adapter(adapter, name)
            return
        options = self._load_options
        if adapter is None:
            adapters.remove(self._module, name)
        elif self.dispatched:
            adapters.attach(self._module, adapter, name, options)
        else:
            adapters.build(self._module, adapter, name, options)
        kept = {key: one for key, one in self._adapters.items() if key != name}
        self._adapters = kept if adapter is None else {**kept, name: adapter}
        self._family = register_modules(self._module)

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Generate text, with the block below.

        Args:
            *args: the prompt, or several; leave it out and give one to each invoke.
            trace: False generates without a block and returns the token ids.
            **kwargs: arguments of transformers' `generate`, as `max_new_tokens`, and options of the
                tokenizer, as `truncation`; `max_length` is the generation's, unless texts are cut
                to it (`truncation=True`) and there is `max_new_tokens` as well.

        Returns:
            The tracer, to be used in a `with` statement.

        Raises:
            InputError: when the block is left: the model cannot run on the prompt, or a keyword is
                known neither to the generation nor to the tokenizer.

        Example:
            >>> with model.generate("Hello", max_new_tokens=3) as tracer:
            ...     for step in tracer.iter[:]:
            ...         model.transformer.h[5].output[:, -1] = 0    # [1, width]
            ...     tokens = tracer.result.save()                   # [1, tokens + 3]
        """
        if not args and kwargs.get("inputs") is not None:
            # transformers' name of the prompt
            args = (kwargs.pop("inputs"),)
        if isinstance(kwargs.get("assistant_model"), Envoy):
            kwargs["assistant_model"] = module_of(kwargs["assistant_model"])
        if self.task == "image-text-to-text":
            # the form in which the pipeline takes them
            kwargs = {**kwargs.pop("generate_kwargs", {}), **kwargs}
        return self._opened("generate", Input(args, {}), kwargs, trace)

    def pipe(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Run the whole pipeline of the task: preprocessing, model, postprocessing.

        In a `with` statement, the block below reads and changes the model while the pipeline runs,
        and `tracer.result` is what the pipeline returns.

        Args:
            *args: input of the pipeline, or a list of inputs.
            trace: False runs the pipeline without a block, also in a `with` statement.
            **kwargs: parameters of the pipeline's call, as `top_k`, `batch_size` and, for a task
                that generates, `max_new_tokens`.

        Returns:
            The records of the pipeline; in a `with` statement the tracer.

        Raises:
            InputError: transformers has no task for this model, or an option is one of traces only.
            BatchingError: several invokes in it have an input.

        Example:
            >>> model.pipe("The [MASK] sat", top_k=1)
            [{'score': 0.2, 'token': 3899, 'token_str': 'cat', 'sequence': 'the cat sat'}]
            >>> with model.pipe("The [MASK] sat") as tracer:
            ...     model.bert.encoder.layer[3].output[:] = 0
            ...     records = tracer.result.save()
        """
        self._refuse_remote(kwargs)
        given = pipe.input_of(self, args, kwargs)
        tracer = self._trace_class(self, "pipe", given, kwargs)
        if trace and opens_block():
            return tracer
        return tracer._run_without_block()

    def _is_input(self, key: str, options: Mapping[str, Any]) -> bool:
        if self.task == "image-text-to-text" and key in ("images", "text", "videos"):
            return True
        return key in batching.INPUTS or (key == self._architecture.main_input and key != "inputs")

    def _has_prompt(self, given: Input) -> bool:
        return bool(given.args) or not batching.TOKENS.isdisjoint(given.kwargs)

    def _prepare(self) -> None:
        super()._prepare()
        if self._origin is None:
            self.dispatch()

    _makes_batches = True
    _generation_class: type[Generation] = Generation

    def _streams(self, function: str) -> bool:
        return function == "generate"

    def _descend(self, item: str | int) -> Place | None:
        return self.generator if item == "generator" else super()._descend(item)

    def _function(self, name: str) -> Callable[..., Any]:
        if name == "pipe":
            run: Callable[..., Any] = self.pipeline
            return run
        if name == "generate":
            generate: Callable[..., Any] = self._module.generate
            if hasattr(self._module, "base_model_prepare_inputs_for_generation"):
                return self._restoring(generate)
            return generate
        return super()._function(name)

    def _restoring(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap PEFT's `generate`, which replaces a method of the inner model while it runs.

        PEFT restores the method after an `Exception`. A run that ends early raises a
        `BaseException`, so it is restored here, too.
        """

        def generate_and_restore(*args: Any, **kwargs: Any) -> Any:
            base = self._module.base_model
            before = base.__dict__.get("prepare_inputs_for_generation")
            try:
                return generate(*args, **kwargs)
            except BaseException:
                if before is None:
                    base.__dict__.pop("prepare_inputs_for_generation", None)
                else:
                    base.prepare_inputs_for_generation = before
                raise

        return generate_and_restore

    def _row_factors(self, function: str, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        if function != "generate":
            return 1, 1
        configs = kwargs.get("generation_config"), getattr(self._module, "generation_config", None)

        def count(name: str) -> int:
            given = [kwargs.get(name), *(getattr(config, name, None) for config in configs)]
            return max(1, int(next((one for one in given if one is not None), 1)))

        beams, sequences = count("num_beams"), count("num_return_sequences")
        return max(beams, sequences), sequences

    def _runs_empty(self, options: Mapping[str, Any]) -> bool:
        # every argument of such a forward has a default, but the model needs one of them
        return False

    def _first_step(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        accepted = self._accepted()
        first = {key: value for key, value in kwargs.items() if key in accepted}
        config = getattr(self._module, "config", None)
        if getattr(config, "is_encoder_decoder", False) and "input_ids" in first:
            start = getattr(config, "decoder_start_token_id", None)
            ids = first["input_ids"]
            first.setdefault("decoder_input_ids", ids.new_full((len(ids), 1), start or 0))
        return first

    def _explain(self, error: BaseException) -> None:
        messages.explain_no_weights(error)
        text = str(error)
        if isinstance(error, IndexError) and "index out of range in self" in text:
            error.add_note(
                "an index into a table of embeddings was beyond its end: token ids end at the size "
                "of the vocabulary, and positions at config.max_position_embeddings; give a "
                "shorter prompt, or fewer new tokens"
            )
        elif isinstance(error, ValueError) and "input_ids or inputs_embeds" in text:
            if self._architecture.has_encoder:
                error.add_note(
                    "the decoder of this model makes no tokens out of the prompt's: give "
                    "decoder_input_ids= or labels= along with it"
                )
        elif isinstance(error, RuntimeError) and "device-side assert" in text:
            error.add_note(
                "an index was out of range on the GPU, where ids are not looked at before a run; "
                "start the process again and give the ids on the CPU, which has them checked"
            )

    def _merged(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        if self._has_own_batches:
            return super()._merged(inputs, function, options)
        if function == "pipe":
            return pipe.batch_of(inputs, options)
        inputs = self._preprocessed(inputs, function)
        return merge(self._architecture, inputs, function, options, self.device)

    def _preprocessed(self, inputs: Sequence[Input], function: str) -> Sequence[Input]:
        """Return inputs of a task that is not one of texts as arguments of the model, in place."""
        task = self.task
        if task is None or tasks.takes_texts(task):
            return inputs
        has_parts = any(self.__dict__[part] is not None for part in tasks.PARTS[1:])
        made = []
        for number, one in enumerate(inputs):
            if not has_parts and one.args and is_text_or_tensor(one.args[0]):
                # nothing preprocesses it: it is a prompt, or the model's main argument
                made.append(one)
                continue
            with blaming(number):
                made.append(
                    given_to_task(task, lambda: self.pipeline, one, self._architecture, function)
                )
        return made

    def _accepted(self) -> Collection[str]:
        return self._architecture.accepted

    @property
    def _architecture(self) -> Architecture:
        own = self.__dict__
        known: dict[str, Any] = own.setdefault("_known_options", {})
        tokenizer = own["tokenizer"]
        if own.get("task") == "image-text-to-text" and own["processor"] is not None:
            tokenizer = own["processor"]
        return Architecture(self._module, tokenizer, known)

    def _takes_steps(self, function: str) -> bool:
        return function == "generate" or (function == "pipe" and pipe.generates(self.pipeline))

    def _stepping(self) -> Envoy:
        inner = self._architecture.inner
        path = next(path for path, one in self._module.named_modules() if one is inner)
        return self._envoy_at(path)
