"""Small checkpoints of each task, saved to a folder with what preprocesses their inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, GPT2Config, PreTrainedTokenizerFast

from tests.models import EOS, PAD, WORDS

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
MASKED = [*WORDS, "[MASK]"]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(MASKED)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def _bert(kind: str) -> Callable[[], Any]:
    def new() -> Any:
        config = BertConfig(
            vocab_size=len(MASKED), max_position_embeddings=64, initializer_range=0.4,
            pad_token_id=PAD, **SIZES,
        )  # fmt: skip
        return getattr(transformers, kind)(config)

    return new


def _gpt2() -> Any:
    config = GPT2Config(
        vocab_size=len(MASKED), n_positions=64, n_embd=16, n_layer=2, n_head=2,
        initializer_range=0.4, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _vit(kind: str) -> Callable[[], Any]:
    def new() -> Any:
        config = transformers.ViTConfig(
            image_size=8, patch_size=4, initializer_range=0.4, num_labels=3, **SIZES
        )
        return getattr(transformers, kind)(config)

    return new


def _yolos() -> Any:
    config = transformers.YolosConfig(
        image_size=[8, 8], patch_size=4, num_detection_tokens=3, initializer_range=0.4,
        num_labels=3, **SIZES,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config)


def _glpn() -> Any:
    config = transformers.GLPNConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=8, initializer_range=0.4,
    )  # fmt: skip
    return transformers.GLPNForDepthEstimation(config)


def _wav2vec2(kind: str) -> Callable[[], Any]:
    def new() -> Any:
        config = transformers.Wav2Vec2Config(
            vocab_size=len(MASKED), conv_dim=[8, 8], conv_stride=[5, 4], conv_kernel=[10, 4],
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_labels=3,
            pad_token_id=PAD, classifier_proj_size=8, **SIZES,
        )  # fmt: skip
        return getattr(transformers, kind)(config)

    return new


def _images(kind: str, **options: Any) -> Any:
    return getattr(transformers, kind)(**options)


def _sound() -> Any:
    return transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000, return_attention_mask=False)


SMALL = {"size": {"height": 8, "width": 8}}
CHECKPOINTS: dict[str, tuple[Callable[[], Any], list[Callable[[], Any]]]] = {
    "text-generation": (_gpt2, [tokenizer]),
    "fill-mask": (_bert("BertForMaskedLM"), [tokenizer]),
    "text-classification": (_bert("BertForSequenceClassification"), [tokenizer]),
    "token-classification": (_bert("BertForTokenClassification"), [tokenizer]),
    "feature-extraction": (_bert("BertModel"), [tokenizer]),
    "image-classification": (
        _vit("ViTForImageClassification"),
        [lambda: _images("ViTImageProcessorPil", **SMALL)],
    ),
    "image-feature-extraction": (
        _vit("ViTModel"),
        [lambda: _images("ViTImageProcessorPil", **SMALL)],
    ),
    "object-detection": (
        _yolos,
        [lambda: _images("YolosImageProcessorPil", **SMALL)],
    ),
    "depth-estimation": (_glpn, [lambda: _images("GLPNImageProcessorPil", size_divisor=8)]),
    "audio-classification": (_wav2vec2("Wav2Vec2ForSequenceClassification"), [_sound]),
    "automatic-speech-recognition": (_wav2vec2("Wav2Vec2ForCTC"), [tokenizer, _sound]),
}


def save(task: str, folder: Path) -> str:
    """Save the checkpoint of a task with fixed random weights; return the folder's path."""
    new, parts = CHECKPOINTS[task]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        new().eval().save_pretrained(folder)
    for part in parts:
        part().save_pretrained(folder)
    return str(folder)
