"""More architectures: the kinds of models that `tests/models.py` has none of.

Small and random, like those. In addition, every parameter is moved a little: several architectures
start with zero biases and a zero embedding of the padding, which would hide what padding does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from tests.models import EOS, PAD, WORDS, Kind

_SPECIAL = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
_LIKE_LLAMA = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    **_SPECIAL,
}
_LIKE_BERT = {key: value for key, value in _LIKE_LLAMA.items() if key != "num_key_value_heads"}
_LIKE_MAMBA = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "state_size": 4,
    "initializer_range": 0.4,
    **_SPECIAL,
}


def built(model: str, config: str, **options: Any) -> Any:
    """Make a model from its config, with the names of their classes in transformers."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.randn_like(parameter) * 0.05
    return module.eval()


def _kind(name: str, model: str, config: str, paths: str, **options: Any) -> Kind:
    """Describe a kind; paths are of layers, attention, feed-forward, embedding and head."""
    layers, attention, mlp, embedding, head = paths.split()
    pads_left = model.endswith(("CausalLM", "LMHeadModel"))
    new = partial(built, model, config, **options)
    return Kind(name, new, layers, attention, mlp, embedding, head, pads_left)


_LLAMA_PATHS = "model.layers self_attn mlp model.embed_tokens lm_head"

DECODERS = (
    _kind(
        "gemma2", "Gemma2ForCausalLM", "Gemma2Config", _LLAMA_PATHS,
        **_LIKE_LLAMA, head_dim=8, query_pre_attn_scalar=8, sliding_window=4,
    ),
    _kind(
        "gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", _LLAMA_PATHS,
        **_LIKE_LLAMA, head_dim=8, query_pre_attn_scalar=8, sliding_window=4,
    ),
    _kind(
        "mistral", "MistralForCausalLM", "MistralConfig", _LLAMA_PATHS,
        **_LIKE_LLAMA, head_dim=8, sliding_window=4,
    ),
    _kind("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _LLAMA_PATHS, **_LIKE_LLAMA),
    _kind(
        "mixtral", "MixtralForCausalLM", "MixtralConfig", _LLAMA_PATHS,
        **_LIKE_LLAMA, num_local_experts=4, num_experts_per_tok=2,
    ),
    _kind(
        "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig",
        "gpt_neox.layers attention mlp gpt_neox.embed_in lm_head", **_LIKE_BERT,
    ),
    _kind(
        "bloom", "BloomForCausalLM", "BloomConfig",
        "transformer.h self_attention mlp transformer.word_embeddings lm_head",
        vocab_size=len(WORDS), hidden_size=16, n_layer=3, n_head=2, initializer_range=0.4,
        **_SPECIAL,
    ),
    _kind(
        "opt", "OPTForCausalLM", "OPTConfig",
        "model.decoder.layers self_attn fc2 model.decoder.embed_tokens lm_head",
        vocab_size=len(WORDS), hidden_size=16, ffn_dim=24, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.4,
        **_SPECIAL,
    ),
)  # fmt: skip

ENCODERS = (
    _kind(
        "roberta", "RobertaForMaskedLM", "RobertaConfig",
        "roberta.encoder.layer attention output roberta.embeddings.word_embeddings lm_head",
        **_LIKE_BERT,
    ),
    _kind(
        "distilbert", "DistilBertForMaskedLM", "DistilBertConfig",
        "distilbert.transformer.layer attention ffn distilbert.embeddings.word_embeddings "
        "vocab_projector",
        vocab_size=len(WORDS), dim=16, n_layers=3, n_heads=2, hidden_dim=24,
        max_position_embeddings=64, initializer_range=0.4, pad_token_id=PAD,
    ),
)  # fmt: skip

RECURRENT = (
    _kind(
        "mamba", "MambaForCausalLM", "MambaConfig",
        "backbone.layers mixer mixer backbone.embeddings lm_head", **_LIKE_MAMBA,
    ),
    _kind(
        "mamba2", "Mamba2ForCausalLM", "Mamba2Config",
        "backbone.layers mixer mixer backbone.embeddings lm_head",
        **_LIKE_MAMBA, num_heads=4, head_dim=8, n_groups=1, chunk_size=8,
    ),
)  # fmt: skip


def new_rwkv() -> Any:
    return built(
        "RwkvForCausalLM", "RwkvConfig", vocab_size=len(WORDS), hidden_size=16,
        attention_hidden_size=16, num_hidden_layers=2, intermediate_size=24, **_SPECIAL,
    )  # fmt: skip


def new_recurrent_gemma() -> Any:
    options = {key: one for key, one in _LIKE_LLAMA.items() if key != "max_position_embeddings"}
    return built(
        "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig",
        **options, lru_width=16, attention_window_size=8,
    )  # fmt: skip


def new_minimax() -> Any:
    return built(
        "MiniMaxForCausalLM", "MiniMaxConfig", **_LIKE_LLAMA, num_local_experts=2,
        num_experts_per_tok=1, block_size=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )  # fmt: skip


def new_bart() -> Any:
    return built(
        "BartForConditionalGeneration", "BartConfig", vocab_size=len(WORDS), d_model=16,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, init_std=0.4,
        decoder_start_token_id=EOS, forced_eos_token_id=None, **_SPECIAL,
    )  # fmt: skip


IMAGE_START, IMAGE, IMAGE_END = "nine", "ten", "eight"
"""Words that stand around an image, and for each part of it."""

_TEXT = {**_LIKE_LLAMA, "num_hidden_layers": 2}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
}


def new_llava() -> Any:
    return built(
        "LlavaForConditionalGeneration", "LlavaConfig",
        vision_config=transformers.CLIPVisionConfig(**_VISION, patch_size=4, projection_dim=16),
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_id=WORDS.index(IMAGE), vision_feature_layer=-1,
    )  # fmt: skip


def new_gemma3_vision() -> Any:
    return built(
        "Gemma3ForConditionalGeneration", "Gemma3Config",
        vision_config=transformers.SiglipVisionConfig(**_VISION, patch_size=2).to_dict(),
        text_config=transformers.Gemma3TextConfig(
            **_TEXT, head_dim=8, query_pre_attn_scalar=8, sliding_window=32
        ).to_dict(),
        image_token_id=WORDS.index(IMAGE), boi_token_id=WORDS.index(IMAGE_START),
        eoi_token_id=WORDS.index(IMAGE_END), mm_tokens_per_image=4,
    )  # fmt: skip


def new_qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return built(
        "Qwen2VLForConditionalGeneration", "Qwen2VLConfig",
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 1, "in_channels": 3,
        },
        text_config={**_TEXT, "rope_parameters": rope},
        image_token_id=WORDS.index(IMAGE), vision_start_token_id=WORDS.index(IMAGE_START),
        vision_end_token_id=WORDS.index(IMAGE_END), video_token_id=WORDS.index("seven"),
    )  # fmt: skip
