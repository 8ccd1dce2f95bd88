"""`LanguageModel`: the wrapper of models that generate text.

    model = LanguageModel("openai-community/gpt2")
    with model.trace() as tracer:
        with tracer.invoke("the cat"):                  # 2 tokens
            one = model.lm_head.output[:, -1].save()
        with tracer.invoke("the red dog ran"):          # 4 tokens, in the same batch
            two = model.lm_head.output[:, -1].save()

It is a `TransformersModel` whose task is text generation, unless `automodel=` or the class of a
given module says otherwise.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling.generation import Generation as Generation
from nnsight_dsl.modeling.transformers_model import TransformersModel as TransformersModel


class LanguageModel(TransformersModel):
    """A language model of transformers, with its tokenizer.

    From a name or path the model is built without weights (on the meta device) and loaded at its
    first run, so that it can be printed and programs can be written before anything is loaded.

    Args:
        model: a repository name, a path, or a module that is already loaded, wrapped or not.
        automodel: class of transformers to load with, or its name.
        **kwargs: as for `TransformersModel`.

    Raises:
        TokenizerNotFoundError: at the first text, if a module was given without a tokenizer.

    Example:
        >>> model = LanguageModel("openai-community/gpt2")
        >>> with model.trace("The Eiffel Tower is in the city of"):
        ...     logits = model.lm_head.output[:, -1].save()
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | Envoy,
        *,
        automodel: Any = "AutoModelForCausalLM",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, automodel=automodel, **kwargs)
