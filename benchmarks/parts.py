"""What the benchmarks share: the models, and timing in turns.

This file is also read by the interpreters that other libraries are installed for, so it needs no
more than torch, and transformers for the models that are theirs.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

LAYERS = 12
STEPS = 16
WORDS = 100


class Layer(nn.Module):
    """A small MLP block, fast enough for the overhead to show."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.relu(self.up(hidden)))


class Stack(nn.Module):
    """A residual stack of such blocks."""

    def __init__(self, layers: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


GPT2_SHAPES: Mapping[str, tuple[int, int, int]] = {
    "small GPT-2": (12, 64, 4),
    "GPT-2 124M": (12, 768, 12),
    "deep GPT-2": (32, 32, 2),
}
"""Layers, width and heads, by the name of the model."""

MODELS = ("MLP stack", *GPT2_SHAPES)


def new_model(name: str) -> nn.Module:
    """Make a model of random weights, the same in every process."""
    torch.manual_seed(0)
    if name == "MLP stack":
        return Stack(LAYERS).eval()
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads = GPT2_SHAPES[name]
    words = 50_257 if width > 500 else WORDS
    config = GPT2Config(
        vocab_size=words, n_embd=width, n_layer=layers, n_head=heads, n_positions=128,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def new_input(name: str) -> torch.Tensor:
    """Make the input of a model: one row of eight tokens, or of numbers."""
    torch.manual_seed(1)
    return torch.randn(1, 32) if name == "MLP stack" else torch.randint(2, WORDS, (1, 8))


def new_tokenizer() -> Any:
    """Make a tokenizer, which a wrapper of a language model wants to have."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    # the names of special tokens are no part of any word
    vocabulary = {"[PAD]": 0, "[EOS]": 1, **{f"w{number}": number for number in range(2, WORDS)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]", unk_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def prompts(count: int) -> list[str]:
    """Make prompts of eight words."""
    return [" ".join(f"w{2 + (7 * i + j) % 97}" for j in range(8)) for i in range(count)]


def layers_of(module: nn.Module) -> nn.ModuleList:
    """Return the layers of either kind of model."""
    found: Any = module.layers if isinstance(module, Stack) else module.transformer.h
    return found


def once(function: Callable[[], object]) -> float:
    """Return the microseconds that one call takes."""
    begin = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - begin) / 1_000


def compare(
    functions: Sequence[Callable[[], object]], rounds: int, warm_up: int = 5
) -> list[list[float]]:
    """Time the functions in turns."""
    for function in functions:
        for _ in range(warm_up):
            function()
    gc.collect()
    gc.disable()
    try:
        times = [[once(function) for function in functions] for _ in range(rounds)]
    finally:
        gc.enable()
    return [list(column) for column in zip(*times, strict=True)]


def machine() -> str:
    """Name what the figures were measured with."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {_processor()}, "
        f"{os.cpu_count()} cores, one thread"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    except OSError:
        pass
    return platform.processor() or platform.machine()
