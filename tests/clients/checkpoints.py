"""A cache of the Hugging Face hub, with small random models under the names that clients use.

    python -m tests.clients.checkpoints FOLDER

With `HF_HUB_CACHE=FOLDER` and `HF_HUB_OFFLINE=1` a client loads them by name, as if it had
downloaded them. Every model has the tokenizer of the model in `examples/`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

MODEL = Path(__file__).resolve().parents[2] / "examples" / "models" / "city-facts"
_TOKENS = {"vocab_size": 1084, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_LIKE_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    **_TOKENS,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LIKE_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, **_TOKENS}
_LIKE_OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48}

CHECKPOINTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _LIKE_GPT2),
    "Maykeye/TinyLLama-v0": ("LlamaForCausalLM", "LlamaConfig", _LIKE_LLAMA),
    "yujiepan/gemma-tiny-random": (
        "GemmaForCausalLM", "GemmaConfig", {**_LIKE_LLAMA, "head_dim": 8},
    ),
    "yujiepan/mistral-tiny-random": ("MistralForCausalLM", "MistralConfig", _LIKE_LLAMA),
    "yujiepan/qwen2-tiny-random": ("Qwen2ForCausalLM", "Qwen2Config", _LIKE_LLAMA),
    "yujiepan/qwen3-tiny-random": (
        "Qwen3ForCausalLM", "Qwen3Config", {**_LIKE_LLAMA, "head_dim": 8},
    ),
    "bigscience/bigscience-small-testing": (
        "BloomForCausalLM", "BloomConfig",
        {"hidden_size": 32, "n_layer": 4, "n_head": 4, **_TOKENS},
    ),
    "yujiepan/opt-tiny-2layers-random": (
        "OPTForCausalLM", "OPTConfig", {**_LIKE_LLAMA, **_LIKE_OPT},
    ),
    "yujiepan/mixtral-8xtiny-random": (
        "MixtralForCausalLM", "MixtralConfig",
        {**_LIKE_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "yujiepan/qwen3-moe-tiny-random": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {**_LIKE_LLAMA, **_EXPERTS, "num_experts": 4, "head_dim": 8},
    ),
}  # fmt: skip


def write_checkpoints(cache: Path) -> None:
    """Write every model that is not in the cache yet."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    tokenizer.model_max_length = 512
    for name, (model, config, options) in CHECKPOINTS.items():
        folder = cache / f"models--{name.replace('/', '--')}"
        commit = hashlib.sha1(name.encode()).hexdigest()
        if (folder / "refs" / "main").exists():
            continue
        torch.manual_seed(7)
        module = getattr(transformers, model)(getattr(transformers, config)(**options))
        for target in (module, tokenizer):
            target.save_pretrained(folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)


if __name__ == "__main__":
    write_checkpoints(Path(sys.argv[1]))
