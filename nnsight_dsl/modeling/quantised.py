"""Quantised weights by name: `dtype="nf4"`, and what the machine has to have for them.

    model = LanguageModel("meta-llama/Llama-3.1-8B", dtype="nf4", compute_dtype="bfloat16")

A name stands for a `quantization_config` of transformers, which quantises the weights while it
loads them. Until then the model is on the meta device, as it is without a quantisation.

| name | weights | by |
|---|---|---|
| `nf4`, `4bit`, `int4` | 4 bits, normal float | bitsandbytes |
| `fp4` | 4 bits, float | bitsandbytes |
| `int8`, `8bit` | 8 bits | bitsandbytes |
| `fp8` | 8 bits, float, in blocks of 128 | transformers, on a GPU of capability 8.9 or later |
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from nnsight_dsl.runtime.errors import InputError

_FOUR_BITS = {"nf4": "nf4", "4bit": "nf4", "int4": "nf4", "fp4": "fp4"}
_EIGHT_BITS = frozenset({"int8", "8bit"})
NAMES = frozenset({*_FOUR_BITS, *_EIGHT_BITS, "fp8"})

_CAPABILITY_OF_FP8 = (8, 9)
"""The compute capability of the first NVIDIA GPUs with arithmetic of 8-bit floats."""


def config_of(name: str, compute_dtype: torch.dtype | None) -> Any:
    """Return the quantisation that a name stands for, as an option of `from_pretrained`.

    Args:
        name: one of `NAMES`.
        compute_dtype: precision of the multiplications with weights of 4 bits; None for that of
            their inputs.

    Raises:
        InputError: this machine cannot make or run such weights.
    """
    import transformers

    if compute_dtype is not None and name not in _FOUR_BITS:
        raise InputError(
            f"compute_dtype={compute_dtype} was given with dtype={name!r}, and only weights of 4 "
            "bits have it; leave it out"
        )
    if name == "fp8":
        _check_fp8()
        return transformers.FineGrainedFP8Config()
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"dtype={name!r} needs bitsandbytes, which is not installed; pip install bitsandbytes, "
            "or give dtype='bfloat16'"
        )
    if name in _EIGHT_BITS:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=_FOUR_BITS[name],
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _check_fp8() -> None:
    if not torch.cuda.is_available():
        raise InputError(
            "dtype='fp8' needs a GPU of NVIDIA with capability 8.9 or later, and this machine has "
            "none; give dtype='int8' or 'nf4', which run on the CPU, too"
        )
    capability = torch.cuda.get_device_capability()
    if capability < _CAPABILITY_OF_FP8:
        raise InputError(
            "dtype='fp8' needs a GPU of capability 8.9 or later, and "
            f"{torch.cuda.get_device_name()} has {capability[0]}.{capability[1]}; give "
            "dtype='int8' or 'nf4'"
        )
