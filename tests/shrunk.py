"""Any architecture of transformers, made small from its config.

The sizes of a config are replaced by small ones, by the names of the attributes; the few
architectures whose sizes depend on each other in a way of their own have an entry in `_PECULIAR`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.models import EOS, PAD, WORDS

TASKS: dict[str, Mapping[str, Any]] = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
TASKS["base"] = {
    name: modeling_auto.MODEL_MAPPING_NAMES[name]
    for name in {
        **modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    if name in modeling_auto.MODEL_MAPPING_NAMES
}
"""By task, the classes for each type of model; "base" is the models without a head."""

_VOCABULARY = len(WORDS)
_LAYERS = 4
_BY_NAME: Mapping[str, int] = {
    # vocabulary
    **dict.fromkeys(
        "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input "
        "t2u_vocab_size char_vocab_size entity_vocab_size pronunciation_vocab_size "
        "shape_vocab_size vocab_offset ngram_vocab_size_base".split(),
        _VOCABULARY,
    ),
    # widths
    **dict.fromkeys(
        "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size embedding_dim "
        "word_embed_proj_dim attention_hidden_size input_embedding_size output_embedding_size "
        "hidden_size_global lru_width pooler_hidden_size cross_attention_hidden_size "
        "encoder_hidden_size backbone_hidden_size out_hidden_size pronunciation_embed_dim "
        "shape_embed_dim entity_emb_size true_hidden_size intra_bottleneck_size router_hidden_size "
        "d_latents input_size dim_model_base ple_embed_dim".split(),
        32,
    ),
    **dict.fromkeys(
        "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff d_inner n_inner hidden_dim "
        "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size dim_ff "
        "expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size feed_forward_size "
        "moe_shared_expert_intermediate_size".split(),
        48,
    ),
    # heads
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
        "attention_heads index_n_heads swa_num_attention_heads num_self_attention_heads "
        "num_cross_attention_heads linear_num_heads num_query_groups".split(),
        4,
    ),
    **dict.fromkeys(
        "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads "
        "linear_num_value_heads".split(),
        2,
    ),
    **dict.fromkeys(
        "head_dim d_kv kv_channels v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim "
        "query_pre_attn_scalar linear_key_head_dim linear_value_head_dim swa_head_dim dim_head "
        "d_head attention_head_size linear_head_dim attention_head_dim rotary_dim".split(),
        8,
    ),
    "qk_head_dim": 16,
    **dict.fromkeys("kv_lora_rank q_lora_rank o_lora_rank".split(), 16),
    # depth
    **dict.fromkeys(
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
        "num_decoder_layers num_encoder_layers max_window_layers".split(),
        _LAYERS,
    ),
    # experts
    **dict.fromkeys(
        "num_experts num_local_experts n_routed_experts moe_num_experts".split(),
        4,
    ),
    **dict.fromkeys("num_experts_per_tok num_experts_per_token moe_topk moe_k".split(), 2),
    **dict.fromkeys("n_group topk_group num_expert_group".split(), 1),
    # recurrences
    **dict.fromkeys("state_size mamba_d_state ssm_state_size".split(), 8),
    **dict.fromkeys("mamba_n_heads mamba_num_heads n_mamba_heads".split(), 4),
    **dict.fromkeys("mamba_d_head mamba_head_dim mamba_headdim".split(), 16),
    **dict.fromkeys("mamba_d_ssm".split(), 64),
    **dict.fromkeys("n_groups mamba_n_groups mamba_ngroups".split(), 1),
    **dict.fromkeys("time_step_rank mamba_dt_rank".split(), 4),
    **dict.fromkeys("chunk_size mamba_chunk_size".split(), 8),
    # lengths
    **dict.fromkeys(
        "max_position_embeddings n_positions max_target_positions max_source_positions n_ctx "
        "max_seq_len context_length max_encoder_position_embeddings "
        "max_decoder_position_embeddings original_max_position_embeddings".split(),
        64,
    ),
    # what is longer than a sliding window is seen, too
    **dict.fromkeys("sliding_window sliding_window_size attention_window_size".split(), 6),
    **dict.fromkeys("hidden_size_per_layer_input".split(), 8),
}  # fmt: skip

_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_TOKENS = {
    "pad_token_id": PAD,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "sep_token_id": EOS,
    "cls_token_id": EOS,
    "mask_token_id": EOS,
}
_LOUD = {"initializer_range": 0.3, "init_std": 0.3}
_PER_LAYER = (
    "layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type", "indexer_types",
    "activation_sparsity_pattern", "layer_rope_theta", "num_attention_heads_per_layer",
    "attn_layers", "attention_layers",
)  # fmt: skip

_PECULIAR: Mapping[str, Mapping[str, Any]] = {
    "blenderbot": {"encoder_layers": 4},
    "cohere_compass_text": {
        "head_dim": 16,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "neomme": {"head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "zamba": {
        "num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1,
        "layer_types": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64, "attention_head_dim": 16,
    },
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "esm": {"vocab_size": _VOCABULARY},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "led": {"attention_window": 4},
    "longformer": {"attention_window": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mobilebert": {"embedding_size": 16},
    "minimax": {
        "block_size": 4, "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {
        "axial_pos_embds_dim": (8, 24), "axial_pos_shape": (8, 8), "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4, "num_buckets": 4,
    },
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


def _small(name: str, value: Any) -> Any:
    if name in _BY_NAME and isinstance(value, int) and not isinstance(value, bool):
        return min(value, _BY_NAME[name]) if value > 0 else value
    if name in _TOKENS:
        return _TOKENS[name]
    if name in _LOUD:
        return _LOUD[name]
    if name in _PER_LAYER and isinstance(value, (list, tuple)) and value:
        return type(value)(_some_of_each(value))
    if "dropout" in name or name.endswith("_pdrop") or "layerdrop" in name:
        return type(value)(0) if type(value) in (int, float) else value
    return value


def _some_of_each(kinds: Any) -> list[Any]:
    """Choose as many layers as are made, with each kind of layer among them."""
    distinct = list(dict.fromkeys(map(_hashable, kinds)))
    chosen = list(kinds[:_LAYERS])
    missing = [one for one in distinct if one not in map(_hashable, chosen)]
    for number, one in enumerate(missing[: _LAYERS - 1]):
        chosen[-1 - number] = next(kind for kind in kinds if _hashable(kind) == one)
    return chosen


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def small_config(cls: Any, **options: Any) -> Any:
    """Make a small config of a class."""
    default = cls()
    names = [one.name for one in dataclasses.fields(cls) if one.init]
    changed: dict[str, Any] = {}
    for name in names:
        try:
            value = getattr(default, name, None)
        except Exception:
            # some layers have a size that others have not
            value = None
        if isinstance(value, transformers.PreTrainedConfig):
            changed[name] = small_config(type(value))
        elif name in _KEY_HEADS and value == getattr(default, "num_attention_heads", None):
            # nobody groups its queries here
            changed[name] = _BY_NAME["num_attention_heads"]
        elif (new := _small(name, value)) is not value:
            changed[name] = new
    known = set(names) | set(getattr(cls, "attribute_map", {}))
    changed |= {key: one for key, one in _TOKENS.items() if key in known}
    changed |= _PECULIAR.get(cls.model_type, {})
    return cls(**changed | options)


@cache
def kinds() -> tuple[tuple[str, str], ...]:
    """List all kinds: the task and the type of the model."""
    return tuple((task, name) for task, names in TASKS.items() for name in names)


def small_model(task: str, name: str) -> nn.Module:
    """Make a small model with random weights, each of them moved a little.

    Several architectures start with zero biases and a zero embedding of the padding, which would
    hide the padding's effect.
    """
    names = TASKS[task][name]
    cls = getattr(transformers, names if isinstance(names, str) else names[0])
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = small_config(cls.config_class or CONFIG_MAPPING[name])
        if task == "causal" and hasattr(config, "is_decoder") and not config.is_encoder_decoder:
            config.is_decoder = True
        with torch.device("meta"):
            size = sum(one.numel() for one in cls(config).parameters())
        if size > 20_000_000:
            raise ValueError(f"{size / 1e6:.0f} million parameters are left")
        module: nn.Module = cls(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    parameter += torch.randn_like(parameter) * 0.05
    return module.eval()


NOT_MADE: Mapping[tuple[str, str], str] = {
    **dict.fromkeys(
        [("base", "blt"), ("causal", "blt")],
        "its embeddings of bytes have 96 million parameters at any size",
    ),
    **dict.fromkeys(
        [("base", "cohere_compass_text"), ("causal", "cohere_compass_text")],
        "its default config names no rotary dimensions",
    ),
    **dict.fromkeys([("base", "gemma3n"), ("causal", "gemma3n")], "needs timm"),
    ("base", "layoutlmv2"): "needs detectron2",
    ("base", "emu3"): "its default config has no text in it",
    **dict.fromkeys(
        [("causal", "gemma4_assistant"), ("causal", "gemma4_unified_assistant")],
        "runs on the states of another model only",
    ),
    **dict.fromkeys(
        [(task, name) for task in ("base", "causal") for name in ("musicgen", "musicgen_melody")],
        "takes codebooks of sound",
    ),
    ("base", "whisper"): "takes sound",
    ("base", "perceiver"): "takes inputs of any kind, by another name",
    ("base", "bros"): "takes boxes along with its text",
    ("base", "lxmert"): "takes images along with its text",
    ("seq2seq", "encoder-decoder"): "has no sizes of its own",
    ("seq2seq", "vibevoice_asr"): "its tokenizer of sound has 687 million parameters at any size",
    ("seq2seq", "voxtral_realtime"): "takes sound only",
}
"""Kinds that cannot be made small from their configs, or take no text, with the reason."""

NOT_GENERATING: Mapping[tuple[str, str], str] = {
    ("seq2seq", "t5"): "its default config has no token for its decoder to start with",
}
"""Kinds whose plain model does not generate from text, with the reason."""
