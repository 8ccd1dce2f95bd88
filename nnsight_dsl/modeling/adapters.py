"""Adapters of PEFT, put into a model in place.

    model = TransformersModel("openai-community/gpt2", peft="me/gpt2-lora")
    model.transformer.h[0].attn.c_attn.lora_A.default      # in the base model's own tree
    model.load_adapter("me/another")                       # in place of the first
    model.load_adapter(None)                               # the base model again

The integration of transformers does the work: an adapted module takes the place of the base
module, which is its `base_layer`. Paths of the base model stay as they are, unlike in a
`peft.PeftModel`, whose paths begin with `base_model.model`.

Adapters that learn a prompt have no place in the tree, and are refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from nnsight_dsl.runtime.errors import InputError

DEFAULT = "default"
"""The name of an adapter for which none is given, as in PEFT."""


def _of_hub(options: Mapping[str, Any]) -> dict[str, Any]:
    # not the revision, which is that of the model
    return {key: options[key] for key in ("cache_dir", "token") if key in options}


def named(given: Any) -> dict[str, Any]:
    """Return adapters by name: one that was given without a name is `default`."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {DEFAULT: given}


def check(module: nn.Module, source: Any, options: Mapping[str, Any]) -> Any:
    """Return the configuration of an adapter.

    Args:
        module: the model that it is for.
        source: a repository name, a path, or a configuration of PEFT.
        options: options of loading, of which those of the Hub are used.

    Raises:
        InputError: it cannot be put into the model.
        ImportError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft, which is not installed; pip install peft") from error

    if isinstance(module, peft.PeftModel):
        raise InputError(
            "the model is a peft.PeftModel already, which has adapters of its own; give the model "
            "inside, peft_model.get_base_model(), or load them by peft_model.load_adapter(...)"
        )
    if not hasattr(module, "load_adapter"):
        raise InputError(
            f"{type(module).__name__} is no model of transformers, which has adapters put into it; "
            "wrap a peft.PeftModel"
        )
    if isinstance(source, (str, os.PathLike)):
        config = peft.PeftConfig.from_pretrained(str(source), **_of_hub(options))
    elif isinstance(source, peft.PeftConfig):
        config = source
    else:
        raise InputError(
            f"{type(source).__name__} is no adapter; give a repository name, a path, or a "
            "configuration such as peft.LoraConfig(...)"
        )
    if config.is_prompt_learning:
        raise InputError(
            f"an adapter of the kind {config.peft_type.value} learns a prompt, and is no part of "
            "the model that could be put into it; wrap a peft.PeftModel, LanguageModel(peft_model)"
        )
    return config


def put(
    module: Any, adapters: Mapping[str, Any], options: Mapping[str, Any], *, has_weights: bool
) -> None:
    """Put adapters into a model, by name; without weights if it is on the meta device."""
    for name, source in adapters.items():
        (attach if has_weights else build)(module, source, name, options)


@contextmanager
def _several() -> Iterator[None]:
    """Let a second adapter be put into a model without warnings: it was asked for.

    transformers reports the weights of the first one as missing in the checkpoint of the second.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)


def build(module: Any, source: Any, name: str, options: Mapping[str, Any]) -> None:
    """Put an adapter without weights into a model on the meta device."""
    from accelerate import init_empty_weights

    config = check(module, source, options)
    remove(module, name)
    with init_empty_weights(include_buffers=True), _several():
        module.add_adapter(config, name)
    module.eval()


def attach(module: Any, source: Any, name: str, options: Mapping[str, Any]) -> None:
    """Put an adapter into a model, in place of one of its name.

    A configuration makes one with new weights.

    Raises:
        InputError: the weights do not fit the model.
    """
    config = check(module, source, options)
    remove(module, name)
    try:
        if not isinstance(source, (str, os.PathLike)):
            with _several():
                module.add_adapter(config, name)
        else:
            own = {"adapter_name": name, "adapter_kwargs": _of_hub(options)}
            with _several():
                found = module.load_adapter(str(source), **own)
            # PEFT's report has the weights of other adapters, too
            missing = sorted(key for key in found.missing_keys if name in key.split("."))
            if missing or found.mismatched_keys:
                raise InputError(
                    f"the adapter {str(source)!r} does not fit {type(module).__name__}: "
                    f"{len(missing) + len(found.mismatched_keys)} of its weights, as "
                    f"{[*missing, *map(str, found.mismatched_keys)][0]}, are missing or of another "
                    "shape; load the model that it was made for"
                )
    except BaseException:
        remove(module, name)
        raise
    finally:
        module.eval()


def remove(module: Any, name: str) -> None:
    """Take an adapter out of a model; with the last one, the modules that hold adapters, too."""
    if name in getattr(module, "peft_config", {}):
        with warnings.catch_warnings():
            # another one becomes active
            warnings.filterwarnings("ignore", "Adapter .* was active", UserWarning)
            module.delete_adapter(name)
    if not getattr(module, "peft_config", None):
        restore(module)


def restore(module: nn.Module) -> None:
    """Put the modules of the base model back to their places."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    for above in [*module.modules()]:
        for key, one in [*above.named_children()]:
            if isinstance(one, BaseTunerLayer):
                setattr(above, key, one.get_base_layer())
            elif isinstance(one, AuxiliaryTrainingWrapper):
                setattr(above, key, one.original_module)
