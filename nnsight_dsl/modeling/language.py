"""`LanguageModel`: the wrapper of language models of the transformers library.

    model = LanguageModel("openai-community/gpt2")
    with model.trace() as tracer:
        with tracer.invoke("the cat"):                  # 2 tokens
            one = model.lm_head.output[:, -1].save()
        with tracer.invoke("the red dog ran"):          # 4 tokens, in the same batch
            two = model.lm_head.output[:, -1].save()

A model given by name is built on the meta device, and its weights are loaded at the first run.
The inputs of all invokes become one call of the model (`merging.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling import batching
from nnsight_dsl.modeling.architecture import Architecture
from nnsight_dsl.modeling.base import NNsight, module_of
from nnsight_dsl.modeling.merging import merge
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.tracing.runnable import Batch, Input
from nnsight_dsl.transforms import requests


class Generation(Place):
    """`model.generator`: the place of a whole generation. Its output is the generated token ids."""

    _module = None
    _path = "generator"
    _parent = None

    @property
    def output(self) -> Any:
        """The result of `generate`: token ids of shape [rows, prompt and new tokens].

        Raises:
            NotRunningError: no model is running.
        """
        machine = current_machine()
        if machine is None:
            raise towards_user(messages.outside("generator.output"))
        return machine.request((requests.READ, self, "output"))


class LanguageModel(NNsight):
    """A language model of transformers, with its tokenizer.

    From a name or path the model is built without weights (on the meta device) and loaded at its
    first run, so that it can be printed and programs can be written before anything is loaded.

    Args:
        model: a repository name, a path, or a module that is already loaded, wrapped or not.
        tokenizer: its tokenizer; loaded along with a name or path.
        automodel: class of transformers to load with, or its name.
        dispatch: load the weights at once.
        device_map: placement of the weights, for `from_pretrained`.
        dtype: precision of the weights; `torch_dtype` is the same.
        rename: aliases of modules, see `NNsight`.
        tokenizer_kwargs: options of the tokenizer's `from_pretrained`, where it is loaded along.
        **kwargs: passed on to `from_pretrained`.

    Raises:
        TokenizerNotFoundError: at the first text, if a module was given without a tokenizer.

    Example:
        >>> model = LanguageModel("openai-community/gpt2")
        >>> with model.trace("The Eiffel Tower is in the city of"):
        ...     logits = model.lm_head.output[:, -1].save()
    """

    _own = NNsight._own | frozenset({"tokenizer", "generator", "_source", "_load_options"})

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | Envoy,
        *,
        tokenizer: Any = None,
        automodel: Any = "AutoModelForCausalLM",
        dispatch: bool = False,
        device_map: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        rename: Mapping[str, str | Sequence[str]] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = dict(kwargs)
        if device_map is not None:
            options["device_map"] = device_map
        if dtype is not None or torch_dtype is not None:
            options["dtype"] = torch_dtype if dtype is None else dtype
        source: tuple[Any, str] | None = None
        if isinstance(model, LanguageModel) and tokenizer is None:
            tokenizer = model.__dict__["tokenizer"]
        if not isinstance(model, (str, os.PathLike)):
            module = module_of(model)
        else:
            import transformers

            if isinstance(automodel, str):
                automodel = getattr(transformers, automodel)
            source = (automodel, str(model))
            module = _load(source, options) if dispatch else _build(source, options)
            if tokenizer is None:
                trust = {"trust_remote_code": kwargs.get("trust_remote_code", False)}
                given = {**trust, **(tokenizer_kwargs or {})}
                tokenizer = transformers.AutoTokenizer.from_pretrained(str(model), **given)
                _pad_left(tokenizer, module)
                tokenizer.padding_side = given.get("padding_side", tokenizer.padding_side)
        super().__init__(module, rename=rename)
        # None once the weights are loaded; only `dispatch` sets it to None
        self._source = None if dispatch else source
        self._load_options = options
        self.tokenizer = tokenizer
        self.generator = Generation()

    @property
    def dispatched(self) -> bool:
        """Whether the weights are loaded."""
        return self._source is None

    def dispatch(self) -> None:
        """Load the weights now, if they are not loaded yet."""
        source = self._source
        if source is None:
            return
        module = _load(source, self._load_options)
        self._rebind(module)
        self._family = register_modules(module)
        # last, so that an interrupted load is repeated
        self._source = None

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Generate text, with the block below.

        Args:
            *args: the prompt, or several; leave it out and give one to each invoke.
            trace: False generates without a block and returns the token ids.
            **kwargs: arguments of transformers' `generate`, as `max_new_tokens`, and options of the
                tokenizer, as `truncation`; `max_length` is the generation's.

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
        return self._opened("generate", Input(args, {}), kwargs, trace)

    def _is_input(self, key: str, options: Mapping[str, Any]) -> bool:
        return key in batching.INPUTS or (key == self._architecture.main_input and key != "inputs")

    def _has_prompt(self, given: Input) -> bool:
        return bool(given.args) or not batching.TOKENS.isdisjoint(given.kwargs)

    def _prepare(self) -> None:
        super()._prepare()
        if self._origin is None:
            self.dispatch()

    _makes_batches = True

    def _function(self, name: str) -> Callable[..., Any]:
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

    def _batch(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        return merge(self._architecture, inputs, function, options, self.device)

    def _accepted(self) -> Collection[str]:
        return self._architecture.accepted

    @property
    def _architecture(self) -> Architecture:
        own = self.__dict__
        known: dict[str, Any] = own.setdefault("_known_options", {})
        return Architecture(self._module, own["tokenizer"], known)

    def _stepping(self) -> Envoy:
        inner = self._architecture.inner
        path = next(path for path, one in self._module.named_modules() if one is inner)
        return self.get(path)


TransformersModel = LanguageModel
"""Another name of the same class."""


def _build(source: tuple[Any, str], options: Mapping[str, Any]) -> nn.Module:
    """Build a model on the meta device, from its configuration."""
    import transformers
    from accelerate import init_empty_weights

    automodel, name = source
    known = ("trust_remote_code", "revision", "cache_dir", "token")
    config = transformers.AutoConfig.from_pretrained(
        name, **{key: options[key] for key in known if key in options}
    )
    kept = ("trust_remote_code", "attn_implementation", "dtype")
    with init_empty_weights(include_buffers=True):
        module: nn.Module = automodel.from_config(
            config, **{key: options[key] for key in kept if key in options}
        )
    return module.eval()


def _pad_left(tokenizer: Any, module: nn.Module) -> None:
    """Set a tokenizer's padding side to the left, as prompts are padded here, if a model generates.

    A tokenizer without a padding token gets its end token for it.
    """
    config = getattr(module, "config", None)
    can_generate = getattr(module, "can_generate", None)
    if (
        can_generate is not None
        and can_generate()
        and not getattr(config, "is_encoder_decoder", False)
    ):
        tokenizer.padding_side = "left"
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token


def _load(source: tuple[Any, str], options: Mapping[str, Any]) -> nn.Module:
    automodel, name = source
    module: nn.Module = automodel.from_pretrained(name, **options)
    return module.eval()
