"""The wrapper of language models of the transformers library.

Prompts go in as text. Several of them run as one batch, padded so that each gets what it gets
alone: causal models are padded on the left, with position ids counted from the attention mask.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnsight_dsl.envoy import Envoy
from nnsight_dsl.modeling import batching
from nnsight_dsl.modeling.base import NNsight, module_of
from nnsight_dsl.runtime import complaints
from nnsight_dsl.runtime.errors import BatchingError, TokenizerNotFoundError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machine import current_machine
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.tracer import Batch, Input
from nnsight_dsl.transforms import requests

_IGNORES_MASK = frozenset({"recurrent_gemma", "rwkv"})
"""Model types that accept an attention mask and do not use it, or not in all layers."""

_GENERATES_UNPADDED = frozenset({"minimax", "reformer"})
"""Model types that use the attention mask, and go wrong when they generate from padded prompts."""

_GENERATES_ALONE = frozenset({"rwkv"})
"""Model types that mix the rows of a batch when they generate."""

_LEARNED_ASIDE = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
"""Adapters of learned prompts that do not stand among the tokens, where padding would come next."""


class Generation(Place):
    """`model.generator`: the generation as a whole. Its output is the generated token ids."""

    _module = None
    _path = "generator"
    _parent = None

    @property
    def output(self) -> Any:
        """What `generate` returned: token ids of shape [rows, prompt and new tokens].

        Raises:
            NotRunningError: no model is running.
        """
        machine = current_machine()
        if machine is None:
            raise complaints.outside("generator.output")
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
            if tokenizer is None:
                trust = {"trust_remote_code": kwargs.get("trust_remote_code", False)}
                tokenizer = transformers.AutoTokenizer.from_pretrained(str(model), **trust)
            module = _load(source, options) if dispatch else _build(source, options)
        super().__init__(module, rename=rename)
        self._source = None if dispatch else source
        self._load_options = options
        self.tokenizer = tokenizer
        self.generator = Generation()

    def dispatch(self) -> None:
        """Load the weights now, if they are not loaded yet."""
        source, self._source = self._source, None
        if source is None:
            return
        try:
            module = _load(source, self._load_options)
        except BaseException:
            self._source = source
            raise
        self._rebind(module)
        self._family = register_modules(module)

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Generate text, with the block below.

        Args:
            *args: the prompt, or several; leave it out and give one to each invoke.
            trace: False generates without a block and returns the token ids.
            **kwargs: arguments of transformers' `generate`, as `max_new_tokens`.

        Returns:
            The tracer, to be used in a `with` statement.
        """
        return self._opened("generate", Input(args, {}), kwargs, trace)

    def _is_input(self, key: str, options: Mapping[str, Any]) -> bool:
        return key in batching.INPUTS

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
        """Return PEFT's generate, which lends the model inside a method for as long as it lasts.

        It takes that back after an Exception; what ends a run early is none.
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

    def _rows_per_row(self, kwargs: Mapping[str, Any]) -> int:
        config = getattr(self._module, "generation_config", None)
        beams = kwargs.get("num_beams") or getattr(config, "num_beams", None) or 1
        sequences = kwargs.get("num_return_sequences") or 1
        return max(int(beams), int(sequences))

    def _runs_empty(self, options: Mapping[str, Any]) -> bool:
        # all arguments of such a forward can be left out, and the model cannot do without them
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

    # batching

    def _batch(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        given = self._all_given(inputs)
        for_decoder = batching.DECODED if self._has_encoder() else ()
        for_prompt = [key for key in batching.SEQUENCES if key not in for_decoder]
        sequences = [_rows_in(one, for_prompt) for one in given]
        decoded = [_rows_in(one, for_decoder) for one in given]
        prompts = [batching.prompt_of(one) for one in sequences]
        counts = tuple(map(len, prompts))
        others = [
            {key: one[key] for key in one if key not in for_prompt and key not in for_decoder}
            for one in given
        ]
        joined = batching.joined(others, counts, options)
        merged = self._padded(sequences, prompts, function, joined.keys() | options.keys())
        merged |= batching.padded_for_decoder(
            decoded, self._pad_id(), is_continued=function == "generate"
        )
        device = self.device
        # the token ids come first, so that they are the root's `.input`
        kwargs = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in {**merged, **joined}.items()
        }
        kwargs.update((key, options[key]) for key in options if key not in joined)
        if function == "generate":
            self._check_can_generate(sum(counts))
            config = getattr(self._module, "generation_config", None)
            if getattr(config, "pad_token_id", None) is None:
                kwargs.setdefault("pad_token_id", self._pad_id())
        return Batch((), kwargs, counts)

    def _all_given(self, inputs: Sequence[Input]) -> list[dict[str, Any]]:
        """Return the arguments of each input.

        Texts are tokenized in one call, which costs a third of one call for each.
        """
        texts = [one.args[0] for one in inputs if len(one.args) == 1 and type(one.args[0]) is str]
        # one of the user's own may pad what it is given together, or take one text at a time
        is_usual = type(self.tokenizer).__module__.startswith("transformers.")
        if len(texts) < 2 or not is_usual:
            return [self._given(one) for one in inputs]
        encoding = self._token_ids(texts)
        if any(type(rows) is not list or len(rows) != len(texts) for rows in encoding.values()):
            # such a tokenizer does not give one row for each text
            return [self._given(one) for one in inputs]
        numbers = iter(range(len(texts)))
        given = []
        for one in inputs:
            if len(one.args) == 1 and type(one.args[0]) is str:
                number = next(numbers)
                tokens = {key: rows[number : number + 1] for key, rows in encoding.items()}
                given.append({**tokens, **one.kwargs})
            else:
                given.append(self._given(one))
        return given

    def _given(self, one: Input) -> dict[str, Any]:
        """Return the arguments of one input; text as the tokenizer's."""
        if len(one.args) > 1:
            raise TypeError(
                f"{len(one.args)} inputs were given at once; give several prompts as a list"
            )
        given: dict[str, Any] = {}
        if one.args:
            value = one.args[0]
            given.update(value if isinstance(value, Mapping) else self._token_ids(value))
        return {**given, **one.kwargs}

    def _token_ids(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, str):
            value = [value]
        is_text = isinstance(value, (list, tuple)) and value and isinstance(value[0], str)
        if not is_text:
            return {"input_ids": value}
        if self.tokenizer is None:
            raise TokenizerNotFoundError(
                "Tokenizer not found: the model was given as a module, and text needs its "
                "tokenizer; write LanguageModel(module, tokenizer=tokenizer), or give token ids"
            )
        encoding: Mapping[str, Any] = self.tokenizer(list(value))
        return encoding

    def _padded(
        self,
        sequences: Sequence[Mapping[str, batching.Rows]],
        prompts: Sequence[batching.Rows],
        function: str,
        others: Collection[str],
    ) -> dict[str, torch.Tensor]:
        lengths = {row.shape[0] for rows in prompts for row in rows}
        is_padded = len(lengths) > 1
        if is_padded:
            self._check_can_pad(function)
        left = self._pads_left()
        merged = batching.padded(sequences, prompts, self._pad_id(), left=left)
        accepted = self._accepted()
        if function == "generate":
            return merged
        # the places of an image are no single numbers: such a model counts from the mask itself
        counts_itself = any(key.endswith("grid_thw") for key in others)
        if is_padded and left and "position_ids" in accepted and not counts_itself:
            counted = merged["attention_mask"].cumsum(-1) - 1
            merged.setdefault("position_ids", counted.clamp(min=0))
        if "attention_mask" not in accepted:
            del merged["attention_mask"]
        return merged

    def _check_can_pad(self, function: str) -> None:
        name = type(self._module).__name__
        model_type = self._model_type()
        if model_type in _IGNORES_MASK or "attention_mask" not in self._accepted():
            raise BatchingError(
                f"{name} ignores the attention mask, so prompts of unequal length would disturb "
                "each other in one batch; trace them one by one, or give prompts of the same "
                "number of tokens"
            )
        if function == "generate" and model_type in _GENERATES_UNPADDED:
            raise BatchingError(
                f"{name} goes wrong when it generates from padded prompts; generate from them one "
                "by one, or give prompts of the same number of tokens"
            )

        adapter = getattr(self._module, "active_peft_config", None)
        kind = getattr(adapter, "peft_type", None)
        if getattr(adapter, "is_prompt_learning", False) and kind not in _LEARNED_ASIDE:
            raise BatchingError(
                f"{name} puts learned tokens before the prompt, from which padding would part it; "
                "trace the prompts one by one, or give prompts of the same number of tokens"
            )

    def _check_can_generate(self, rows: int) -> None:
        if rows > 1 and self._model_type() in _GENERATES_ALONE:
            raise BatchingError(
                f"{type(self._module).__name__} mixes the rows of a batch when it generates; "
                "generate from the prompts one by one"
            )

    def _model_type(self) -> Any:
        return getattr(getattr(self._module, "config", None), "model_type", None)

    def _has_encoder(self) -> bool:
        config = getattr(self._module, "config", None)
        return bool(getattr(config, "is_encoder_decoder", False))

    def _accepted(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(type(self._inner()).forward).parameters

    def _inner(self) -> nn.Module:
        """Return the model of transformers, which may stand in a wrapper of another library.

        The model of an adapter passes on what it is given, so its own signature tells nothing,
        and generates by calling the model inside.
        """
        from transformers import PreTrainedModel

        if not isinstance(self._module, PreTrainedModel):
            for module in self._module.modules():
                if isinstance(module, PreTrainedModel):
                    return module
        return self._module

    def _stepping(self) -> Envoy:
        inner = self._inner()
        path = next(path for path, one in self._module.named_modules() if one is inner)
        return self.get(path)

    def _pads_left(self) -> bool:
        if self._has_encoder():
            return False
        can_generate = getattr(self._module, "can_generate", None)
        if can_generate is not None and can_generate():
            return True
        return getattr(self.tokenizer, "padding_side", "right") == "left"

    def _pad_id(self) -> int:
        config = getattr(self._module, "config", None)
        text_config = getattr(config, "text_config", None)
        for owner in (self.tokenizer, config, text_config):
            for name in ("pad_token_id", "eos_token_id"):
                found = getattr(owner, name, None)
                if isinstance(found, list) and found:
                    found = found[0]
                if isinstance(found, int):
                    return found
        return 0


TransformersModel = LanguageModel
"""Another name of the same class."""


def _build(source: tuple[Any, str], options: Mapping[str, Any]) -> nn.Module:
    """Build a model without weights."""
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


def _load(source: tuple[Any, str], options: Mapping[str, Any]) -> nn.Module:
    automodel, name = source
    module: nn.Module = automodel.from_pretrained(name, **options)
    return module.eval()


def _rows_in(given: Mapping[str, Any], keys: Iterable[str]) -> dict[str, batching.Rows]:
    return {key: batching.rows_of(given[key]) for key in keys if given.get(key) is not None}
