"""Options of a run: which keyword is the forward's, which `generate`'s, which the tokenizer's.

    model.trace("a long text", truncation=True, max_length=64, output_attentions=True)

`truncation` and `max_length` are the tokenizer's, `output_attentions` is the forward's. In
`model.generate(...)`, `max_length` is the generation's. The forward and the generation take
precedence over the tokenizer. Only where texts are cut or filled up to a length, and the generation
has its own, `max_length` is that of the texts: beside `max_new_tokens=`, and in an invoke.

A keyword that none of them accepts would vanish in the `**kwargs` of a forward, and the run would
silently ignore it. So it is an `InputError`, with a suggestion: a similar keyword, or the name that
transformers has for an argument of another library (`max_tokens`: write `max_new_tokens`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from torch import nn

from nnsight_dsl.modeling.batching import TOKENS
from nnsight_dsl.modeling.inputs import without_extras
from nnsight_dsl.modeling.keywords import Keywords, is_used, named_parameters, takes_any, words_of
from nnsight_dsl.runtime.errors import InputError

_FOR_ALL_MODELS = frozenset({"return_dict", "output_attentions", "output_hidden_states"})

_OTHER_NAMES = {
    "best_of": "num_beams",
    "beam_size": "num_beams",
    "ignore_eos": "min_new_tokens",
    "logprobs": "output_logits=True, return_dict_in_generate=True",
    "max_completion_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_tokens_to_sample": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "n": "num_return_sequences",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "num_samples": "num_return_sequences",
    "presence_penalty": "repetition_penalty",
    "frequency_penalty": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "seed": "torch.manual_seed(...) before the run",
    "stop_sequences": "stop_strings",
    "stop_token_ids": "eos_token_id",
}
"""Arguments of generation in other libraries, with their names in transformers."""

FOR_PROCESSORS = ("audio", "image", "images", "raw_speech", "video", "videos")
"""Keywords of processors, for images, sound and video."""

_IGNORED = frozenset({"return_tensors"})
"""Options of a tokenizer that have no effect here: tensors are made in any case."""

_NOT_FOR_USERS = frozenset(
    "conversation return_assistant_tokens_mask return_dict text tokenize".split()
)
"""Parameters of a tokenizer that this package sets itself."""


@dataclass(frozen=True)
class Options:
    """The keywords that a run of a model accepts. Valid as long as the model's forward is the same.

    Attributes:
        module: the model of transformers.
        forward: keywords of its forward.
        tokenizer: its tokenizer, or None.
        generate: the function that generates, None in a trace.
        own: options of the trace itself, for suggestions.
        used: cache: keywords outside of any signature that the model's code was found to use.
    """

    module: nn.Module
    forward: Keywords
    tokenizer: Any
    generate: Any
    own: tuple[str, ...] = ()
    used: set[str] = field(default_factory=set)

    def parted(
        self, given: Mapping[str, Any], *, is_invoke: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split options into those for the tokenizer and those for the model.

        Args:
            given: the options.
            is_invoke: True if they were given to one invoke, whose prompt alone they concern.

        Returns:
            The options for the tokenizer, and those for the forward or the generation.

        Raises:
            InputError: neither accepts a keyword.
        """
        texts: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        has_length = is_invoke or given.get("max_new_tokens") is not None
        is_fitted = given.get("truncation") or given.get("padding") == "max_length"
        for key, value in given.items():
            if key == "max_length" and has_length and is_fitted and key in self.texts:
                texts[key] = value
            elif key in self.forward or key in self.generation:
                rest[key] = value
            elif key in self.texts or self._is_in_template(key):
                if key not in _IGNORED:
                    texts[key] = value
            else:
                self._check(key)
                rest[key] = value
        return texts, rest

    def check(self, given: Iterable[str]) -> None:
        """Check that the model accepts arguments.

        Raises:
            InputError: it does not accept one of them.
        """
        for key in given:
            if key not in self.forward and key not in self.generation:
                self._check(key)

    def kept_of(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        """Return the items of a tokenizer's result that are arguments of this run."""
        is_open = self.forward.is_open
        is_trace = self.generate is None
        return {
            key: value
            for key, value in without_extras(encoding).items()
            if key in self.forward or (is_open and (is_trace or key == "attention_mask"))
        }

    @cached_property
    def generation(self) -> frozenset[str]:
        """Keywords of the generation; empty in a trace."""
        return _generation_keywords(self.generate) if self.generate is not None else frozenset()

    @cached_property
    def texts(self) -> frozenset[str]:
        """Keywords of the tokenizer, for texts and for chats."""
        return text_keywords(self.tokenizer) | chat_keywords(self.tokenizer)

    def _is_in_template(self, key: str) -> bool:
        template = getattr(self.tokenizer, "chat_template", None)
        templates = template.values() if isinstance(template, dict) else [template]
        return any(
            isinstance(one, str) and re.search(rf"\b{re.escape(key)}\b", one) for one in templates
        )

    def _check(self, key: str) -> None:
        name = type(self.module).__name__
        if key in _OTHER_NAMES and self.generate is not None:
            raise InputError(
                f"{key!r} is given to generate, and {name} generates with arguments of "
                f"transformers; write {_OTHER_NAMES[key]}"
            )
        if (self.forward.is_open or self.generate is not None) and (
            key in self.used
            or key in TOKENS
            or key in _of_transformers()
            or is_used(self.module, key)
        ):
            self.used.add(key)
            return
        if self.generate is None and key in _generation_keywords(
            getattr(self.module, "generate", None)
        ):
            raise InputError(
                f"{key!r} is given to trace, which runs one forward, and is an argument of a "
                f"generation; write model.generate(..., {key}=...)"
            )
        takers = [f"{name}.forward"]
        if self.generate is not None:
            takers.insert(0, f"{name}.generate")
        if self.tokenizer is not None:
            takers.append("its tokenizer")
        *others, last = takers
        unknown = f"neither {', '.join(others)} nor {last} has" if others else f"{last} has no"
        raise InputError(f"{key!r} was given, and {unknown} such a keyword; {self._advice(key)}")

    def _advice(self, key: str) -> str:
        if key in FOR_PROCESSORS:
            return "give what the model's processor returns, model.trace(**processor(...))"
        known = {*self.forward.names, *self.generation, *self.texts, *self.own}
        if self.forward.is_open:
            known |= _FOR_ALL_MODELS
        near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.6)
        if near:
            return f"did you mean {' or '.join(map(repr, near))}?"
        return "leave it out, or write NNsight(module), which passes on all that it is given"


def text_keywords(tokenizer: Any) -> frozenset[str]:
    """Return the options of a tokenizer's call, for texts."""
    if tokenizer is None:
        return frozenset()
    return _text_keywords(type(tokenizer).__call__)


@cache
def _text_keywords(call: Any) -> frozenset[str]:
    names = named_parameters(call)
    if takes_any(call):
        # a processor, or a wrapper of a tokenizer, passes `**kwargs` on to one
        from transformers import PreTrainedTokenizerBase

        names |= named_parameters(PreTrainedTokenizerBase.__call__)
    return names - _NOT_FOR_USERS


def chat_keywords(tokenizer: Any) -> frozenset[str]:
    """Return the options of a tokenizer's chat template, for chats."""
    apply = getattr(type(tokenizer), "apply_chat_template", None)
    return named_parameters(apply) - _NOT_FOR_USERS if apply is not None else frozenset()


def refuse_idle(options: Iterable[str]) -> None:
    """Refuse options for texts if no input is a text.

    Raises:
        InputError: there is an option.
    """
    for key in options:
        raise InputError(
            f"{key!r} is an option of the tokenizer, and the input has token ids already; give it "
            "to the call of the tokenizer, or give texts"
        )


@cache
def _of_transformers() -> frozenset[str]:
    """Return the keywords that transformers passes through the forwards of all models."""
    from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
    from transformers.utils import generic

    known: Any = getattr(generic, "TransformersKwargs", None)
    named = getattr(known, "__annotations__", {})
    return _FOR_ALL_MODELS.union(named, FlashAttentionKwargs.__annotations__)


def _generation_keywords(generate: Any) -> frozenset[str]:
    from transformers import GenerationConfig, GenerationMixin

    if generate is None:
        return frozenset()
    found = named_parameters(generate) | words_of(GenerationMixin.generate)
    return found.union(name for name in vars(GenerationConfig()) if not name.startswith("_"))
