"""What batching asks of a model of transformers: its keywords, its padding, its kind.

    model = LanguageModel("openai-community/gpt2")
    model._architecture.pads_left           # True: a causal model
    model._architecture.accepted            # names of the arguments of its forward

An `Architecture` is made for each question, since users replace a module's forward, its
configuration and the tokenizer between runs. Only the keywords are cached, in a mapping that the
wrapper keeps.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnsight_dsl.modeling import checks, padding
from nnsight_dsl.modeling.base import OWN_OPTIONS
from nnsight_dsl.modeling.keywords import either, forward_of, keywords_of
from nnsight_dsl.modeling.options import Options
from nnsight_dsl.runtime.errors import BatchingError

_LEARNED_ASIDE = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
"""PEFT's kinds of learned prompts that are in the KV cache, not among the tokens.

Padding on the left would separate learned tokens from the prompt, so other kinds are not padded.
"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model of transformers, or a wrapper of one, as batching sees it.

    Attributes:
        module: the module that is called.
        tokenizer: its tokenizer, or None.
        known_options: by function, the keywords that a run accepts; filled in here.
    """

    module: nn.Module
    tokenizer: Any
    known_options: dict[str, Any]

    @property
    def inner(self) -> nn.Module:
        """The model of transformers, unwrapped from a wrapper of another library.

        PEFT's wrapper of an adapter passes its arguments on, so its signature says nothing, and its
        generation calls the model inside.
        """
        from transformers import PreTrainedModel

        if not isinstance(self.module, PreTrainedModel):
            for module in self.module.modules():
                if isinstance(module, PreTrainedModel):
                    return module
        return self.module

    @property
    def name(self) -> str:
        """The name of the module's class, for messages."""
        return type(self.module).__name__

    @property
    def config(self) -> Any:
        """The configuration of the module, or None."""
        return getattr(self.module, "config", None)

    @property
    def main_input(self) -> str:
        """The keyword of the model's main input, usually `input_ids`."""
        return str(getattr(self.inner, "main_input_name", "input_ids"))

    @property
    def has_encoder(self) -> bool:
        """True for a model with an encoder and a decoder."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    @property
    def pads_left(self) -> bool:
        """True if prompts are padded on the left: for a model that generates from its prompt."""
        if self.has_encoder:
            return False
        can_generate = getattr(self.module, "can_generate", None)
        if can_generate is not None and can_generate():
            return True
        return getattr(self.tokenizer, "padding_side", "right") == "left"

    @property
    def pad_id(self) -> int:
        """An id for padding that has an embedding; the mask hides its value."""
        count = checks.count_embeddings(self.inner)
        text_config = getattr(self.config, "text_config", None)
        for owner in (self.tokenizer, self.config, text_config):
            for name in ("pad_token_id", "eos_token_id"):
                found = getattr(owner, name, None)
                if isinstance(found, list) and found:
                    found = found[0]
                if isinstance(found, int) and found >= 0 and (count is None or found < count):
                    return found
        return 0

    @property
    def accepted(self) -> Collection[str]:
        """The names of the arguments of the model's forward."""
        return self.options_of("trace").forward.names

    def options_of(self, function: str) -> Options:
        """Return the keywords that a run accepts, cached for each function.

        The cached value is valid as long as the model, both forwards and the tokenizer are the
        same objects: users replace a forward, and accelerate does.
        """
        inner, tokenizer = self.inner, self.tokenizer
        forward, outer = forward_of(inner), forward_of(self.module)
        key, kept = (inner, forward, outer, type(tokenizer)), self.known_options.get(function)
        if kept is not None and all(one is other for one, other in zip(key, kept[0], strict=True)):
            options: Options = kept[1]
            if options.tokenizer is tokenizer:
                return options
        keywords = keywords_of(inner)
        if inner is not self.module:
            keywords = either(keywords, keywords_of(self.module))
        generate = getattr(self.module, "generate", None) if function == "generate" else None
        options = Options(inner, keywords, tokenizer, generate, OWN_OPTIONS)
        self.known_options[function] = key, options
        return options

    def takes_positions(self, function: str) -> bool:
        """Return whether position ids are computed here: for a causal model, padded on the left."""
        if not self.pads_left or "position_ids" not in self.accepted:
            return False
        if function != "generate":
            return True
        # `generate` computes them if they are in the signature, but not if `**kwargs` takes them
        signature = inspect.signature(forward_of(self.inner))
        return "position_ids" not in signature.parameters

    def check_can_pad(self, function: str, *, left: bool) -> None:
        """Check that each row of a padded batch gets the result that it gets alone.

        Raises:
            BatchingError: it does not, with the reason.
        """
        reason = padding.refusal(
            self.inner,
            self.options_of("trace").forward,
            left=left,
            generates=function == "generate",
        )
        if reason is not None:
            raise BatchingError(
                f"{self.name} {reason}, so prompts of unequal length would disturb each other in "
                "one batch; trace them one by one, or give prompts of the same number of tokens"
            )
        adapter = getattr(self.module, "active_peft_config", None)
        kind = getattr(adapter, "peft_type", None)
        if getattr(adapter, "is_prompt_learning", False) and kind not in _LEARNED_ASIDE:
            raise BatchingError(
                f"{self.name} puts learned tokens before the prompt, from which padding would part "
                "it; trace the prompts one by one, or give prompts of the same number of tokens"
            )

    def check_can_generate(self, rows: int) -> None:
        """Check that a batch of some rows can be generated from.

        Raises:
            BatchingError: the model generates from one row only.
        """
        for one in padding.model_types(getattr(self.inner, "config", None)):
            if rows > 1 and one in padding.GENERATES_ALONE:
                raise BatchingError(
                    f"{self.name} {padding.GENERATES_ALONE[one]}; generate from the prompts one by "
                    "one"
                )
