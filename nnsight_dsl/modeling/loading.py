"""Models of transformers by name: built without weights at first, and loaded for a run.

    source = (transformers.AutoModelForCausalLM, "openai-community/gpt2")
    build(source, {})      # on the meta device, from the configuration
    load(source, {})       # with its weights

`options_of` turns the keywords of a wrapper into options of `from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnsight_dsl.modeling import quantised
from nnsight_dsl.runtime.errors import InputError

HUB_OPTIONS = ("trust_remote_code", "revision", "cache_dir", "token")
"""Options of every `from_pretrained`: where a file is loaded from."""


def options_of(
    given: Mapping[str, Any], *, revision: str | None, device: Any, device_map: Any, dtype: Any
) -> dict[str, Any]:
    """Return the options of `from_pretrained`.

    Args:
        given: those that are passed on as they are.
        revision: branch, tag or commit of the repository, or None.
        device: one device for all weights, or None.
        device_map: the placement of the weights, or None.
        dtype: precision of the weights or its name, also of a quantisation, or None.

    Raises:
        InputError: the name is of no precision, or of one that this machine cannot have; or a
            device is given beside a placement over several.
    """
    options = dict(given)
    if revision is not None:
        options["revision"] = revision
    if device is not None:
        if device_map == "auto" or (isinstance(device_map, Mapping) and len(device_map) > 1):
            raise InputError(
                f"device={str(device)!r} and device_map={device_map!r} were given, and one says a "
                "single device where the other says several; give one of the two"
            )
        device_map = torch.device(device)
    if device_map is not None:
        options["device_map"] = device_map
    compute_dtype = options.pop("compute_dtype", None)
    if compute_dtype is not None and dtype not in quantised.NAMES:
        raise InputError(
            f"compute_dtype={compute_dtype!r} was given, and says how quantised weights are "
            "multiplied; give it with dtype='nf4', or give dtype= alone"
        )
    if isinstance(dtype, str) and dtype in quantised.NAMES:
        if options.get("quantization_config") is not None:
            raise InputError(
                f"dtype={dtype!r} and quantization_config= were given, and each says how the "
                "weights are quantised; give one of the two"
            )
        options["quantization_config"] = quantised.config_of(dtype, _dtype_of(compute_dtype))
    elif dtype is not None:
        options["dtype"] = _dtype_of(dtype)
    return options


def check_loaded(options: Mapping[str, Any]) -> None:
    """Check the options of a model that is given as a module.

    Raises:
        InputError: its weights are to be quantised, which is done while they are loaded.
    """
    if options.get("quantization_config") is not None:
        raise InputError(
            "weights are quantised while they are loaded, and the model was given as a module, "
            "which has its weights; give its name or path"
        )


def _dtype_of(dtype: Any) -> Any:
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype={dtype!r} is no type of torch; write 'float16' or torch.float16")
    return found


def config_of(name: str, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a model: the one in the options, or the checkpoint's own."""
    import transformers

    config = options.get("config")
    if config is not None and not isinstance(config, str):
        return config
    return transformers.AutoConfig.from_pretrained(
        config or name, **{key: options[key] for key in HUB_OPTIONS if key in options}
    )


def build(source: tuple[Any, str], options: Mapping[str, Any]) -> nn.Module:
    """Build a model on the meta device, from its configuration."""
    from accelerate import init_empty_weights

    automodel, name = source
    config = config_of(name, options)
    kept = ("trust_remote_code", "attn_implementation", "experts_implementation", "dtype")
    given = {key: options[key] for key in kept if key in options}
    if given.get("dtype") == "auto":
        given["dtype"] = getattr(config, "dtype", None)
    with init_empty_weights(include_buffers=True):
        # transformers' own classes have the method under another name than its auto classes
        make = getattr(automodel, "from_config", None) or automodel._from_config
        module: nn.Module = make(config, **given)
    return module.eval()


def load(source: tuple[Any, str], options: Mapping[str, Any]) -> nn.Module:
    """Load a model with its weights."""
    automodel, name = source
    module: nn.Module = automodel.from_pretrained(name, **options)
    return module.eval()


def pad_left(tokenizer: Any, module: nn.Module) -> None:
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
