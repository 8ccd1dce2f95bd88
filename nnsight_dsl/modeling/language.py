"""The wrapper of language models of the transformers library.

Prompts go in as text. Several of them run as one batch, padded so that each gets what it gets
alone: causal models are padded on the left, with position ids counted from the attention mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling.base import NNsight
from nnsight_dsl.runtime import complaints
from nnsight_dsl.runtime.errors import BatchingError, TokenizerNotFoundError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machine import current_machine
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.tracer import Batch, Input
from nnsight_dsl.transforms import requests

_FILL = {"attention_mask": 0, "token_type_ids": 0, "labels": -100}
"""What a sequence is padded with, by the name of the argument; token ids with the pad token."""

_SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")
_IGNORES_MASK = frozenset({"rwkv"})
"""Model types that accept an attention mask and do not use it."""


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
        model: a repository name, a path, or a module that is already loaded.
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
        model: str | nn.Module,
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
        if isinstance(model, nn.Module):
            module = model
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
        return key in _SEQUENCES or key == "inputs_embeds"

    def _prepare(self) -> None:
        super()._prepare()
        if self._origin is None:
            self.dispatch()

    def _function(self, name: str) -> Callable[..., Any]:
        if name == "generate":
            generate: Callable[..., Any] = self._module.generate
            return generate
        return super()._function(name)

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
        encoded = [self._encoded(one) for one in inputs]
        rest = dict(options)
        for one in inputs:
            for key, value in one.kwargs.items():
                if key in _SEQUENCES or key == "inputs_embeds":
                    continue
                if key in rest and rest[key] is not value and rest[key] != value:
                    raise BatchingError(
                        f"{key} is {rest[key]!r} for one invoke and {value!r} for another, and "
                        "one batch has one; give it to the trace, or trace them one by one"
                    )
                rest[key] = value
        keys = {key for one in encoded for key in one}
        counts = tuple(len(next(iter(one.values()))) for one in encoded)
        if "inputs_embeds" in keys:
            merged = {key: torch.cat([one[key] for one in encoded]) for key in keys}
        else:
            merged = self._padded(encoded, keys, function)
        device = self.device
        kwargs = {key: value.to(device) for key, value in merged.items()}
        if function == "generate":
            config = getattr(self._module, "generation_config", None)
            if getattr(config, "pad_token_id", None) is None:
                rest.setdefault("pad_token_id", self._pad_id())
        return Batch((), {**kwargs, **rest}, counts)

    def _encoded(self, one: Input) -> dict[str, Any]:
        """Return the sequences of one input, each as a list of rows of unequal length."""
        given: dict[str, Any] = {}
        if len(one.args) > 1:
            raise TypeError(
                f"{len(one.args)} inputs were given at once; give several prompts as a list"
            )
        if one.args:
            value = one.args[0]
            given.update(value if isinstance(value, Mapping) else self._token_ids(value))
        for key, value in one.kwargs.items():
            if key in _SEQUENCES or key == "inputs_embeds":
                given[key] = value
        if "inputs_embeds" in given:
            return given
        return {
            key: _rows(value)
            for key, value in given.items()
            if isinstance(value, (list, tuple, torch.Tensor)) or hasattr(value, "__array__")
        }

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
        self, encoded: Sequence[Mapping[str, list[torch.Tensor]]], keys: set[str], function: str
    ) -> dict[str, torch.Tensor]:
        lengths = [len(row) for one in encoded for row in one["input_ids"]]
        longest = max(lengths)
        is_padded = min(lengths) < longest
        if is_padded:
            self._check_can_pad()
        left = self._pads_left()
        merged: dict[str, torch.Tensor] = {}
        # the token ids come first, so that they are the root's `.input`
        for key in sorted(keys | {"attention_mask"}, key=_SEQUENCES.index):
            rows: list[torch.Tensor] = []
            for one in encoded:
                own = one.get(key)
                if own is None:
                    own = [torch.ones_like(row) for row in one["input_ids"]]
                    if key != "attention_mask":
                        own = [torch.full_like(row, _FILL.get(key, 0)) for row in own]
                rows.extend(own)
            fill = self._pad_id() if key == "input_ids" else _FILL.get(key, 0)
            merged[key] = torch.stack([_pad(row, longest, fill, left=left) for row in rows])
        accepted = self._accepted()
        if is_padded and left and function != "generate" and "position_ids" in accepted:
            counted = merged["attention_mask"].cumsum(-1) - 1
            merged.setdefault("position_ids", counted.clamp(min=0))
        if "attention_mask" not in accepted and function != "generate":
            del merged["attention_mask"]
        return merged

    def _check_can_pad(self) -> None:
        model_type = getattr(getattr(self._module, "config", None), "model_type", None)
        if model_type in _IGNORES_MASK or "attention_mask" not in self._accepted():
            raise BatchingError(
                f"{type(self._module).__name__} ignores the attention mask, so prompts of unequal "
                "length would disturb each other in one batch; trace them one by one, or give "
                "prompts of the same number of tokens"
            )

    def _accepted(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(type(self._module).forward).parameters

    def _pads_left(self) -> bool:
        config = getattr(self._module, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            return False
        can_generate = getattr(self._module, "can_generate", None)
        if can_generate is not None and can_generate():
            return True
        return getattr(self.tokenizer, "padding_side", "right") == "left"

    def _pad_id(self) -> int:
        config = getattr(self._module, "config", None)
        for owner in (self.tokenizer, config):
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


def _rows(value: Any) -> list[torch.Tensor]:
    """Split token ids into rows: a tensor, a list of ints or a list of lists."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("the input has no tokens; give at least one")
        if isinstance(value[0], int):
            value = [value]
        return [torch.as_tensor(row) for row in value]
    tensor = torch.as_tensor(value)
    return list(tensor if tensor.ndim > 1 else tensor[None])


def _pad(row: torch.Tensor, length: int, fill: int, *, left: bool) -> torch.Tensor:
    padding = row.new_full((length - len(row),), fill)
    return torch.cat([padding, row] if left else [row, padding])
