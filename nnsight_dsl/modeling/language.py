"""`LanguageModel`: the wrapper of language models of the transformers library.

    model = LanguageModel("openai-community/gpt2")
    with model.trace() as tracer:
        with tracer.invoke("the cat"):                  # 2 tokens
            one = model.lm_head.output[:, -1].save()
        with tracer.invoke("the red dog ran"):          # 4 tokens, in the same batch
            two = model.lm_head.output[:, -1].save()

A model given by name is built on the meta device, and its weights are loaded at the first run.
Inputs pass through these steps to one call of the model, all of them in `_batch`:

1. Keywords are split into those of the tokenizer and those of the model (`options.py`).
2. Prompts become arguments (`prompts.py`), and arguments become rows (`batching.rows_of`).
3. Ids, masks and lengths are checked (`checks.py`).
4. Rows are padded so that each gets the result that it gets alone (`batching.py`, `padding.py`):
   causal models on the left, with position ids counted from the attention mask.

An architecture that cannot be padded refuses prompts of unequal length with a `BatchingError`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling import batching, checks, padding, positions
from nnsight_dsl.modeling.base import OWN_OPTIONS, NNsight, module_of
from nnsight_dsl.modeling.inputs import Rows, blaming
from nnsight_dsl.modeling.keywords import either, forward_of, keywords_of
from nnsight_dsl.modeling.options import Options
from nnsight_dsl.modeling.prompts import Given, all_given
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.errors import BatchingError, InputError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.tracing.runnable import Batch, Input
from nnsight_dsl.transforms import requests

_LEARNED_ASIDE = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
"""PEFT's kinds of learned prompts that are in the KV cache, not among the tokens.

Padding on the left would separate learned tokens from the prompt, so other kinds are not padded.
"""


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
        return key in batching.INPUTS or (key == self._main_input() and key != "inputs")

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
            if self._has_encoder():
                error.add_note(
                    "the decoder of this model makes no tokens out of the prompt's: give "
                    "decoder_input_ids= or labels= along with it"
                )
        elif isinstance(error, RuntimeError) and "device-side assert" in text:
            error.add_note(
                "an index was out of range on the GPU, where ids are not looked at before a run; "
                "start the process again and give the ids on the CPU, which has them checked"
            )

    # batching

    def _batch(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        known = self._options_of(function)
        for_texts: dict[str, Any] = {}
        if options:
            for_texts, options = known.parted(options)
        given = all_given(inputs, known, for_texts, self._main_input())
        for_decoder = list(batching.DECODED) if self._has_encoder() else []
        for_prompt = [key for key in batching.SEQUENCES if key not in for_decoder]
        if any(one.get("labels") is not None for one in given) and checks.has_labels_of_rows(
            self._inner()
        ):
            for_decoder = [key for key in for_decoder if key != "labels"]
            for_prompt = [key for key in for_prompt if key != "labels"]
            batching.make_labels_of_rows(given)
        sequences = [_rows_in(number, one, for_prompt) for number, one in enumerate(given)]
        decoded = [_rows_in(number, one, for_decoder) for number, one in enumerate(given)]
        prompts = [batching.find_prompt(one) for one in sequences]
        others = [
            {key: one[key] for key in one if key not in for_prompt and key not in for_decoder}
            for one in given
        ]
        found = [one for one in prompts if one is not None]
        if len(found) == len(prompts):
            counts = tuple(map(len, found))
            checks.check(self._inner(), sequences, decoded, is_traced=function == "trace")
            joined = batching.joined(others, counts, options)
            if function == "trace":
                self._drop_masks_behind_cache(given, sequences, found, {**options, **joined})
            begins_late = any(one.may_begin_late for one in given)
            others_known = joined.keys() | options.keys()
            merged = self._padded(sequences, found, function, others_known, begins_late=begins_late)
        elif found:
            for number, (own, prompt) in enumerate(zip(others, prompts, strict=True)):
                if prompt is None:
                    self._counted_without_tokens(number, own, decoded[number])
            raise BatchingError(
                "one invoke has tokens and another one has none, and one batch has them for all "
                "rows or for none; trace them one by one"
            )
        else:
            counts = self._counts_without_tokens(others, decoded)
            joined = batching.joined(others, counts, options)
            merged = {
                key: batching.stacked(key, [row for one in sequences for row in one.get(key, ())])
                for key in dict.fromkeys(key for one in sequences for key in one)
            }
        if for_decoder:
            merged |= batching.padded_for_decoder(
                decoded,
                self._pad_id(),
                is_continued=function == "generate",
                refusal=padding.refusal_of_decoded(self._inner()),
            )
        device = self.device
        # the order matters: the first argument, the token ids, is the root's `.input`
        kwargs = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in {**merged, **joined}.items()
        }
        kwargs.update((key, options[key]) for key in options if key not in joined)
        if function == "generate":
            self._check_can_generate(sum(counts))
            self._set_padding(kwargs)
        return Batch((), kwargs, counts)

    def _options_of(self, function: str) -> Options:
        """Return the keywords that a run accepts, cached for each function.

        The cached value is valid as long as the model, both forwards and the tokenizer are the
        same objects: users replace a forward, and accelerate does.
        """
        cached: dict[str, Any] = self.__dict__.setdefault("_known_options", {})
        inner, tokenizer = self._inner(), self.__dict__["tokenizer"]
        forward, outer = forward_of(inner), forward_of(self._module)
        key, kept = (inner, forward, outer, type(tokenizer)), cached.get(function)
        if kept is not None and all(one is other for one, other in zip(key, kept[0], strict=True)):
            options: Options = kept[1]
            if options.tokenizer is tokenizer:
                return options
        keywords = keywords_of(inner)
        if inner is not self._module:
            keywords = either(keywords, keywords_of(self._module))
        generate = getattr(self._module, "generate", None) if function == "generate" else None
        options = Options(inner, keywords, tokenizer, generate, OWN_OPTIONS)
        cached[function] = key, options
        return options

    def _main_input(self) -> str:
        return str(getattr(self._inner(), "main_input_name", "input_ids"))

    def _counts_without_tokens(
        self,
        others: Sequence[Mapping[str, Any]],
        decoded: Sequence[Mapping[str, Rows]],
    ) -> tuple[int, ...]:
        return tuple(
            self._counted_without_tokens(number, one, own)
            for number, (one, own) in enumerate(zip(others, decoded, strict=True))
        )

    def _counted_without_tokens(
        self, number: int, others: Mapping[str, Any], decoded: Mapping[str, Rows]
    ) -> int:
        count = batching.find_count(others, self._main_input())
        if count is None and "decoder_input_ids" in decoded:
            count = len(decoded["decoder_input_ids"])
        if count is not None:
            return count
        with blaming(number):
            raise InputError(
                "this input has neither token ids nor embeddings, nor an argument such as "
                "pixel_values; give a text, input_ids= or inputs_embeds=, or wrap a model that "
                "takes anything else in NNsight"
            )

    def _drop_masks_behind_cache(
        self,
        given: Sequence[Given],
        sequences: Sequence[dict[str, Rows]],
        prompts: Sequence[Rows],
        arguments: Mapping[str, Any],
    ) -> None:
        """Drop the tokenizer's masks if a KV cache (`past_key_values`) holds earlier tokens.

        A mask must cover the cached tokens, too, and the tokenizer's does not. Without a mask, the
        model attends to all tokens.

        Raises:
            BatchingError: there is padding, which only a mask could hide.
        """
        if arguments.get("past_key_values") is None:
            return
        is_unclear = batching.is_padded(prompts)
        for one, own in zip(given, sequences, strict=True):
            if "attention_mask" in one.made:
                is_unclear |= not all(bool(row.all()) for row in own["attention_mask"])
                del own["attention_mask"]
        if is_unclear:
            raise BatchingError(
                "prompts of unequal length follow the tokens of past_key_values, and nothing says "
                "which of those are padding; give attention_mask= for the cached and the new "
                "tokens with prompts of one length, or trace them one by one"
            )

    def _set_padding(self, kwargs: dict[str, Any]) -> None:
        """Set the token id that fills finished rows of a generation.

        It is the one that transformers would choose, with a warning.
        """
        config = kwargs.get("generation_config") or getattr(self._module, "generation_config", None)
        if getattr(config, "pad_token_id", None) is not None or "pad_token_id" in kwargs:
            return
        end = kwargs.get("eos_token_id", getattr(config, "eos_token_id", None))
        end = end[0] if isinstance(end, (list, tuple)) and end else end
        kwargs["pad_token_id"] = end if isinstance(end, int) else self._pad_id()

    def _padded(
        self,
        sequences: Sequence[dict[str, Rows]],
        prompts: Sequence[Rows],
        function: str,
        others: Collection[str],
        *,
        begins_late: bool,
    ) -> dict[str, torch.Tensor]:
        is_padded = batching.is_padded(prompts)
        if function == "generate" and (is_padded or len(sequences) > 1):
            self._infer_masks(sequences)
        counting = padding.counting_of(self._inner())
        pad_id, left = counting.padding_id, False
        if is_padded:
            # only now: each attribute of a configuration costs 5 µs, and most runs need none
            left = self._pads_left()
            self._check_can_pad(function, left=left)
            pad_id = self._pad_id() if pad_id is None else pad_id
        merged = batching.padded(sequences, prompts, pad_id or 0, left=left, first=counting.first)
        mask = merged.get("attention_mask")
        # an image token has a position of several numbers: such a model computes positions itself
        counts_itself = any(key.endswith("grid_thw") for key in others)
        # a model that computes positions from token ids does so in a padded batch, too
        counts_itself |= counting.padding_id is not None and "input_ids" in merged
        if (
            mask is not None
            and (is_padded or begins_late)
            and "position_ids" not in merged
            and not counts_itself
            and self._takes_positions(function)
            and positions.begins_late(mask)
        ):
            length = max(row.shape[0] for prompt in prompts for row in prompt)
            merged["position_ids"] = positions.counted(mask, length) + counting.first
        return merged

    def _takes_positions(self, function: str) -> bool:
        """Return whether position ids are computed here: for a causal model, padded on the left."""
        if not self._pads_left() or "position_ids" not in self._accepted():
            return False
        if function != "generate":
            return True
        # `generate` computes them if they are in the signature, but not if `**kwargs` takes them
        signature = inspect.signature(forward_of(self._inner()))
        return "position_ids" not in signature.parameters

    def _infer_masks(self, sequences: Sequence[dict[str, Rows]]) -> None:
        """Mask padding in ids without a mask, as `generate` does for a single input."""
        config = getattr(self._module, "generation_config", None)
        pad, end = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
        if pad is None or pad == end or (isinstance(end, list) and pad in end):
            return
        for one in sequences:
            rows = one.get("input_ids", ())
            if "attention_mask" not in one and any(bool((row == pad).any()) for row in rows):
                one["attention_mask"] = [row.ne(pad).long() for row in rows]

    def _check_can_pad(self, function: str, *, left: bool) -> None:
        name = type(self._module).__name__
        reason = padding.refusal(
            self._inner(),
            self._options_of("trace").forward,
            left=left,
            generates=function == "generate",
        )
        if reason is not None:
            raise BatchingError(
                f"{name} {reason}, so prompts of unequal length would disturb each other in one "
                "batch; trace them one by one, or give prompts of the same number of tokens"
            )
        adapter = getattr(self._module, "active_peft_config", None)
        kind = getattr(adapter, "peft_type", None)
        if getattr(adapter, "is_prompt_learning", False) and kind not in _LEARNED_ASIDE:
            raise BatchingError(
                f"{name} puts learned tokens before the prompt, from which padding would part it; "
                "trace the prompts one by one, or give prompts of the same number of tokens"
            )

    def _check_can_generate(self, rows: int) -> None:
        for one in padding.model_types(getattr(self._inner(), "config", None)):
            if rows > 1 and one in padding.GENERATES_ALONE:
                raise BatchingError(
                    f"{type(self._module).__name__} {padding.GENERATES_ALONE[one]}; generate from "
                    "the prompts one by one"
                )

    def _has_encoder(self) -> bool:
        config = getattr(self._module, "config", None)
        return bool(getattr(config, "is_encoder_decoder", False))

    def _accepted(self) -> Collection[str]:
        return self._options_of("trace").forward.names

    def _inner(self) -> nn.Module:
        """Return the model of transformers, unwrapped from a wrapper of another library.

        PEFT's wrapper of an adapter passes its arguments on, so its signature says nothing, and its
        generation calls the model inside.
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
        """Return an id for padding that has an embedding; the mask hides its value."""
        count = checks.count_embeddings(self._inner())
        config = getattr(self._module, "config", None)
        text_config = getattr(config, "text_config", None)
        for owner in (self.tokenizer, config, text_config):
            for name in ("pad_token_id", "eos_token_id"):
                found = getattr(owner, name, None)
                if isinstance(found, list) and found:
                    found = found[0]
                if isinstance(found, int) and found >= 0 and (count is None or found < count):
                    return found
        return 0


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


def _rows_in(number: int, given: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Rows]:
    with blaming(number):
        return {
            key: batching.rows_of(key, given[key]) for key in keys if given.get(key) is not None
        }
