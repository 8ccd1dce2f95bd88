"""Real forwards, and small inputs for them: torch's modules and functions, transformers' models."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nnsight_dsl.transforms.bytecode.functions import innermost
from tests import architectures, models
from tests.architectures import built
from tests.models import EOS, LONG, PAD, WORDS, token_ids

MODELLING = (
    "albert bart bert bloom clip cohere convnext deberta_v2 dinov2 distilbert electra falcon "
    "gemma2 gemma3 gpt2 gpt_neo gpt_neox gptj llama llava mamba mamba2 minimax mistral mixtral "
    "olmo2 opt pegasus phi qwen2 qwen2_vl recurrent_gemma resnet roberta rwkv siglip swin t5 vit "
    "wav2vec2 whisper"
).split()
"""The modelling files of transformers whose forwards are listed."""


@cache
def listed() -> dict[CodeType, str]:
    """Return the code of each forward with its name."""
    found: dict[CodeType, str] = {}
    for module in _modules_with_forwards():
        for cls in vars(module).values():
            if (
                inspect.isclass(cls)
                and issubclass(cls, nn.Module)
                and cls.__module__ == module.__name__
                and (function := innermost(vars(cls).get("forward"))) is not None
            ):
                found[function.__code__] = f"{function.__module__}.{function.__qualname__}"
    for value in vars(F).values():
        function = innermost(value)
        if isinstance(function, FunctionType) and function.__code__.co_filename == F.__file__:
            found[function.__code__] = f"{function.__module__}.{function.__qualname__}"
    return found


def _modules_with_forwards() -> Iterator[Any]:
    for name in MODELLING:
        yield importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    for info in pkgutil.iter_modules(nn.modules.__path__, f"{nn.modules.__name__}."):
        yield importlib.import_module(info.name)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def _share(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


def _labels(*shape: int, below: int = 3) -> torch.Tensor:
    return torch.randint(below, shape)


def _signs(*shape: int) -> torch.Tensor:
    return torch.randint(2, shape) * 2.0 - 1


_LINE, _PLANE, _SPACE = (2, 4, 8), (2, 4, 8, 8), (1, 4, 8, 8, 8)

MODULES: tuple[Callable[[], tuple[nn.Module, tuple[Any, ...]]], ...] = (
    *(
        partial(lambda cls: (cls(), (_noise(2, 6),)), cls)
        for cls in (
            nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish,
            nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU,
            nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
            nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Dropout, nn.AlphaDropout,
            nn.FeatureAlphaDropout, nn.Flatten,
        )
    ),
    lambda: (nn.LogSoftmax(-1), (_noise(2, 6),)),
    lambda: (nn.Softmax(-1), (_noise(2, 6),)),
    lambda: (nn.Softmin(-1), (_noise(2, 6),)),
    lambda: (nn.Softmax2d(), (_noise(*_PLANE),)),
    lambda: (nn.Threshold(0.1, 2.0), (_noise(2, 6),)),
    lambda: (nn.Linear(6, 3), (_noise(2, 6),)),
    lambda: (nn.Bilinear(6, 5, 3), (_noise(2, 6), _noise(2, 5))),
    lambda: (nn.Embedding(3, 4), (_labels(2, 5),)),
    lambda: (nn.EmbeddingBag(3, 4), (_labels(2, 5),)),
    lambda: (nn.Dropout1d(), (_noise(*_LINE),)),
    lambda: (nn.Dropout2d(), (_noise(*_PLANE),)),
    lambda: (nn.Dropout3d(), (_noise(*_SPACE),)),
    lambda: (nn.Conv1d(4, 2, 3), (_noise(*_LINE),)),
    lambda: (nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular"), (_noise(*_LINE),)),
    lambda: (nn.Conv2d(4, 2, 3), (_noise(*_PLANE),)),
    lambda: (nn.Conv3d(4, 2, 3), (_noise(*_SPACE),)),
    lambda: (nn.ConvTranspose1d(4, 2, 3), (_noise(*_LINE),)),
    lambda: (nn.ConvTranspose2d(4, 2, 3), (_noise(*_PLANE),)),
    lambda: (nn.ConvTranspose3d(4, 2, 3), (_noise(*_SPACE),)),
    lambda: (nn.BatchNorm1d(4), (_noise(*_LINE),)),
    lambda: (nn.BatchNorm2d(4), (_noise(*_PLANE),)),
    lambda: (nn.InstanceNorm1d(4), (_noise(*_LINE),)),
    lambda: (nn.InstanceNorm2d(4), (_noise(*_PLANE),)),
    lambda: (nn.GroupNorm(2, 4), (_noise(*_LINE),)),
    lambda: (nn.LayerNorm(8), (_noise(*_LINE),)),
    lambda: (nn.RMSNorm(8), (_noise(*_LINE),)),
    lambda: (nn.LocalResponseNorm(2), (_noise(*_PLANE),)),
    lambda: (nn.CrossMapLRN2d(2), (_noise(*_PLANE),)),
    lambda: (nn.MaxPool1d(2), (_noise(*_LINE),)),
    lambda: (nn.MaxPool2d(2), (_noise(*_PLANE),)),
    lambda: (nn.MaxPool3d(2), (_noise(*_SPACE),)),
    lambda: (nn.MaxUnpool1d(2), F.max_pool1d(_noise(*_LINE), 2, return_indices=True)),
    lambda: (nn.MaxUnpool2d(2), F.max_pool2d(_noise(*_PLANE), 2, return_indices=True)),
    lambda: (nn.MaxUnpool3d(2), F.max_pool3d(_noise(*_SPACE), 2, return_indices=True)),
    lambda: (nn.AvgPool1d(2), (_noise(*_LINE),)),
    lambda: (nn.AvgPool2d(2), (_noise(*_PLANE),)),
    lambda: (nn.AvgPool3d(2), (_noise(*_SPACE),)),
    lambda: (nn.LPPool1d(2, 2), (_noise(*_LINE),)),
    lambda: (nn.LPPool2d(2, 2), (_noise(*_PLANE),)),
    lambda: (nn.LPPool3d(2, 2), (_noise(*_SPACE),)),
    lambda: (nn.FractionalMaxPool2d(2, 4), (_noise(*_PLANE),)),
    lambda: (nn.FractionalMaxPool3d(2, 4), (_noise(*_SPACE),)),
    lambda: (nn.AdaptiveAvgPool1d(2), (_noise(*_LINE),)),
    lambda: (nn.AdaptiveAvgPool2d(2), (_noise(*_PLANE),)),
    lambda: (nn.AdaptiveAvgPool3d(2), (_noise(*_SPACE),)),
    lambda: (nn.AdaptiveMaxPool1d(2), (_noise(*_LINE),)),
    lambda: (nn.AdaptiveMaxPool2d(2), (_noise(*_PLANE),)),
    lambda: (nn.AdaptiveMaxPool3d(2), (_noise(*_SPACE),)),
    lambda: (nn.CircularPad1d(1), (_noise(*_LINE),)),
    lambda: (nn.ConstantPad2d(1, 2.0), (_noise(*_PLANE),)),
    lambda: (nn.ReflectionPad2d(1), (_noise(*_PLANE),)),
    lambda: (nn.ReplicationPad3d(1), (_noise(*_SPACE),)),
    lambda: (nn.ChannelShuffle(2), (_noise(*_PLANE),)),
    lambda: (nn.PixelShuffle(2), (_noise(*_PLANE),)),
    lambda: (nn.PixelUnshuffle(2), (_noise(*_PLANE),)),
    lambda: (nn.Upsample(scale_factor=2), (_noise(*_PLANE),)),
    lambda: (nn.Unflatten(1, (2, 3)), (_noise(2, 6),)),
    lambda: (nn.Fold(4, 2), (_noise(1, 4, 9),)),
    lambda: (nn.Unfold(2), (_noise(*_PLANE),)),
    lambda: (nn.Sequential(nn.Linear(6, 3), nn.ReLU()), (_noise(2, 6),)),
    lambda: (nn.CosineSimilarity(), (_noise(2, 6), _noise(2, 6))),
    lambda: (nn.PairwiseDistance(), (_noise(2, 6), _noise(2, 6))),
    lambda: (nn.RNN(4, 3, 2), (_noise(5, 2, 4),)),
    lambda: (nn.GRU(4, 3, 2, bidirectional=True), (_noise(5, 2, 4),)),
    lambda: (nn.LSTM(4, 3, 2, batch_first=True), (_noise(5, 2, 4),)),
    lambda: (nn.RNNCell(4, 3), (_noise(2, 4),)),
    lambda: (nn.GRUCell(4, 3), (_noise(2, 4),)),
    lambda: (nn.LSTMCell(4, 3), (_noise(2, 4),)),
    lambda: (nn.MultiheadAttention(4, 2), (_noise(5, 2, 4),) * 3),
    lambda: (nn.Transformer(4, 2, 1, 1, 8, batch_first=True), (_noise(2, 5, 4), _noise(2, 3, 4))),
    lambda: (nn.AdaptiveLogSoftmaxWithLoss(6, 8, [2, 4], 2.0), (_noise(5, 6), _labels(5, below=8))),
    lambda: (nn.BCELoss(), (_share(2, 3), _share(2, 3))),
    lambda: (nn.BCEWithLogitsLoss(), (_noise(2, 3), _share(2, 3))),
    lambda: (nn.CrossEntropyLoss(), (_noise(2, 3), _labels(2))),
    lambda: (nn.NLLLoss(), (_noise(2, 3), _labels(2))),
    lambda: (
        nn.CTCLoss(),
        (_noise(6, 2, 4).log_softmax(-1), _labels(2, 3) + 1, (6, 6), (3, 2)),
    ),
    lambda: (nn.CosineEmbeddingLoss(), (_noise(2, 3), _noise(2, 3), _signs(2))),
    lambda: (nn.GaussianNLLLoss(), (_noise(2, 3), _noise(2, 3), _share(2, 3))),
    lambda: (nn.HingeEmbeddingLoss(), (_noise(2, 3), _signs(2, 3))),
    lambda: (nn.HuberLoss(), (_noise(2, 3), _noise(2, 3))),
    lambda: (nn.KLDivLoss(reduction="batchmean"), (_noise(2, 3), _share(2, 3))),
    lambda: (nn.L1Loss(), (_noise(2, 3), _noise(2, 3))),
    lambda: (nn.MSELoss(), (_noise(2, 3), _noise(2, 3))),
    lambda: (nn.MarginRankingLoss(), (_noise(2), _noise(2), _signs(2))),
    lambda: (nn.MultiLabelMarginLoss(), (_noise(2, 3), _labels(2, 3))),
    lambda: (nn.MultiLabelSoftMarginLoss(), (_noise(2, 3), _share(2, 3))),
    lambda: (nn.MultiMarginLoss(), (_noise(2, 3), _labels(2))),
    lambda: (nn.PoissonNLLLoss(), (_noise(2, 3), _share(2, 3))),
    lambda: (nn.SmoothL1Loss(), (_noise(2, 3), _noise(2, 3))),
    lambda: (nn.SoftMarginLoss(), (_noise(2, 3), _signs(2, 3))),
    lambda: (nn.TripletMarginLoss(), tuple(_noise(3, 2, 4))),
    lambda: (nn.TripletMarginWithDistanceLoss(), tuple(_noise(3, 2, 4))),
)  # fmt: skip
"""Modules of torch with their arguments; each is made after the seed was set."""


def _given(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


FUNCTIONS: tuple[tuple[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]], ...] = (
    *(
        (name, lambda: _given(_noise(2, 6)))
        for name in (
            "celu elu glu hardsigmoid hardswish hardtanh leaky_relu mish normalize relu relu6 "
            "rrelu selu sigmoid silu softsign tanh tanhshrink"
        ).split()
    ),
    *(
        (name, lambda: _given(_noise(2, 6), dim=-1))
        for name in ("softmax", "softmin", "log_softmax", "gumbel_softmax")
    ),
    *(
        (name, lambda: _given(_noise(2, 3), _share(2, 3)))
        for name in (
            "binary_cross_entropy_with_logits huber_loss l1_loss mse_loss multilabel_soft_margin_"
            "loss poisson_nll_loss smooth_l1_loss soft_margin_loss"
        ).split()
    ),
    ("softmax", lambda: _given(_noise(2, 6), dtype=torch.float64, dim=1)),
    ("_threshold", lambda: _given(_noise(2, 6), 0.1, 2.0)),
    ("dropout", lambda: _given(_noise(2, 6))),
    ("alpha_dropout", lambda: _given(_noise(2, 6), training=True)),
    ("feature_alpha_dropout", lambda: _given(_noise(*_PLANE), training=True)),
    ("dropout1d", lambda: _given(_noise(*_LINE))),
    ("dropout2d", lambda: _given(_noise(*_PLANE))),
    ("dropout3d", lambda: _given(_noise(*_SPACE))),
    ("_max_pool1d", lambda: _given(_noise(*_LINE), 2)),
    ("_max_pool2d", lambda: _given(_noise(*_PLANE), 2)),
    ("_max_pool3d", lambda: _given(_noise(*_SPACE), 2)),
    ("max_pool1d_with_indices", lambda: _given(_noise(*_LINE), 2)),
    ("max_pool2d_with_indices", lambda: _given(_noise(*_PLANE), 2)),
    ("max_pool3d_with_indices", lambda: _given(_noise(*_SPACE), 2)),
    ("_fractional_max_pool2d", lambda: _given(_noise(*_PLANE), 2, output_ratio=(0.5, 0.5))),
    ("_fractional_max_pool3d", lambda: _given(_noise(*_SPACE), 2, output_size=4)),
    ("fractional_max_pool2d_with_indices", lambda: _given(_noise(*_PLANE), 2, output_size=4)),
    ("fractional_max_pool3d_with_indices", lambda: _given(_noise(*_SPACE), 2, output_ratio=0.5)),
    ("_adaptive_max_pool1d", lambda: _given(_noise(*_LINE), 2)),
    ("_adaptive_max_pool2d", lambda: _given(_noise(*_PLANE), 2)),
    ("_adaptive_max_pool3d", lambda: _given(_noise(*_SPACE), 2)),
    ("adaptive_max_pool1d_with_indices", lambda: _given(_noise(*_LINE), 2)),
    ("adaptive_max_pool2d_with_indices", lambda: _given(_noise(*_PLANE), (None, 2))),
    ("adaptive_max_pool3d_with_indices", lambda: _given(_noise(*_SPACE), 2)),
    ("adaptive_avg_pool2d", lambda: _given(_noise(*_PLANE), (None, 2))),
    ("adaptive_avg_pool3d", lambda: _given(_noise(*_SPACE), 2)),
    *(
        (f"max_unpool{n}d", lambda n=n, shape=shape: _given(*_pooled(n, shape), 2))
        for n, shape in ((1, _LINE), (2, _PLANE), (3, _SPACE))
    ),
    ("_unpool_output_size", lambda: _given(_noise(*_PLANE), [2, 2], [2, 2], [0, 0], None)),
    ("lp_pool1d", lambda: _given(_noise(*_LINE), 2.0, 2)),
    ("lp_pool2d", lambda: _given(_noise(*_PLANE), 2.0, 2)),
    ("lp_pool3d", lambda: _given(_noise(*_SPACE), 2.0, 2)),
    ("embedding", lambda: _given(_labels(2, 5), _noise(3, 4), padding_idx=-1)),
    ("embedding", lambda: _given(_labels(2, 5), _noise(3, 4), max_norm=1.0)),
    ("_no_grad_embedding_renorm_", lambda: _given(_noise(3, 4), _labels(2, 5), 1.0, 2.0)),
    ("embedding_bag", lambda: _given(_labels(2, 5), _noise(3, 4), mode="sum")),
    ("embedding_bag", lambda: _given(_labels(6), _noise(3, 4), torch.tensor([0, 2]))),
    ("batch_norm", lambda: _given(_noise(*_LINE), None, None, training=True)),
    ("_verify_batch_size", lambda: _given([2, 4, 8])),
    ("_verify_spatial_size", lambda: _given([2, 4, 8])),
    ("instance_norm", lambda: _given(_noise(*_LINE))),
    ("layer_norm", lambda: _given(_noise(*_LINE), (8,))),
    ("rms_norm", lambda: _given(_noise(*_LINE), (8,))),
    ("group_norm", lambda: _given(_noise(*_LINE), 2)),
    ("local_response_norm", lambda: _given(_noise(*_PLANE), 2)),
    ("nll_loss", lambda: _given(_noise(2, 3), _labels(2), reduction="sum")),
    ("cross_entropy", lambda: _given(_noise(2, 3), _labels(2), label_smoothing=0.1)),
    ("binary_cross_entropy", lambda: _given(_share(2, 3), _share(2, 3), _share(2, 3))),
    ("gaussian_nll_loss", lambda: _given(_noise(2, 3), _noise(2, 3), _share(2, 3), full=True)),
    ("kl_div", lambda: _given(_noise(2, 3), _share(2, 3), reduction="batchmean")),
    ("huber_loss", lambda: _given(_noise(2, 3), _noise(2, 3), weight=_share(2, 3))),
    ("mse_loss", lambda: _given(_noise(2, 3), _noise(2, 3), weight=_share(2, 3))),
    ("margin_ranking_loss", lambda: _given(_noise(2), _noise(2), _signs(2))),
    ("hinge_embedding_loss", lambda: _given(_noise(2, 3), _signs(2, 3))),
    ("multilabel_margin_loss", lambda: _given(_noise(2, 3), _labels(2, 3))),
    ("cosine_embedding_loss", lambda: _given(_noise(2, 3), _noise(2, 3), _signs(2))),
    ("multi_margin_loss", lambda: _given(_noise(2, 3), _labels(2), p=2)),
    ("triplet_margin_loss", lambda: _given(*_noise(3, 2, 4), swap=True)),
    ("triplet_margin_with_distance_loss", lambda: _given(*_noise(3, 2, 4), swap=True)),
    (
        "ctc_loss",
        lambda: _given(_noise(6, 2, 4).log_softmax(-1), _labels(2, 3) + 1, (6, 6), (3, 2)),
    ),
    *(
        ("interpolate", partial(lambda mode, shape: _given(_noise(*shape), 5, mode=mode), *case))
        for case in (
            ("nearest", _LINE), ("linear", _LINE), ("area", _PLANE), ("bilinear", _PLANE),
            ("bicubic", _PLANE), ("nearest-exact", _PLANE), ("trilinear", _SPACE),
        )
    ),
    (
        "interpolate",
        lambda: _given(
            _noise(*_PLANE), scale_factor=(1.5, 2), mode="bilinear", align_corners=False,
            recompute_scale_factor=True,
        ),
    ),
    ("_is_integer", lambda: _given(3)),
    ("grid_sample", lambda: _given(_noise(*_PLANE), _share(2, 3, 3, 2), align_corners=True)),
    ("affine_grid", lambda: _given(_noise(2, 2, 3), [2, 4, 8, 8], align_corners=True)),
    ("pad", lambda: _given(_noise(*_PLANE), (1, 1, 1, 1), mode="reflect")),
    ("unfold", lambda: _given(_noise(*_PLANE), 2)),
    ("fold", lambda: _given(_noise(1, 4, 9), 4, 2)),
    ("assert_int_or_pair", lambda: _given([2, 3], "size", "of {}")),
    ("_mha_shape_check", lambda: _given(*_noise(3, 5, 2, 4), None, None, 2)),
    ("_none_or_dtype", lambda: _given(_noise(2))),
    ("_in_projection_packed", lambda: _given(*_noise(3, 5, 2, 4), _noise(12, 4))),
    (
        "_in_projection",
        lambda: _given(*_noise(3, 5, 2, 4), *_noise(3, 4, 4), *_noise(3, 4)),
    ),
    (
        "_canonical_mask",
        lambda: _given(_labels(2, 5) > 0, "mask", None, "other", torch.float32),
    ),
    (
        "multi_head_attention_forward",
        lambda: _given(
            *_noise(3, 5, 2, 4), 4, 2, _noise(12, 4), _noise(12), None, None, False, 0.0,
            _noise(4, 4), _noise(4), key_padding_mask=torch.tensor([[False] * 4 + [True]] * 2),
        ),
    ),
)  # fmt: skip
"""Functions of `torch.nn.functional` with their arguments, which are made after a seed was set."""


def _pooled(n: int, shape: tuple[int, ...]) -> Any:
    return getattr(F, f"max_pool{n}d")(_noise(*shape), 2, return_indices=True)


_SPECIAL = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
_BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
_LLAMA = {**_BERT, "num_key_value_heads": 1, **_SPECIAL}
_IMAGE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
_SEQ2SEQ = {
    "vocab_size": len(WORDS),
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": EOS,
    **_SPECIAL,
}
_SOUND = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "conv_dim": [8, 8],
    "conv_stride": [2, 2],
    "conv_kernel": [3, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": len(WORDS),
}


def _text() -> dict[str, Any]:
    ids = token_ids(LONG)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _choices() -> dict[str, Any]:
    return {key: value.expand(2, -1)[None] for key, value in _text().items()}


def _two_texts() -> dict[str, Any]:
    return {**_text(), "decoder_input_ids": token_ids("a dog")}


def _image(size: int = 8) -> dict[str, Any]:
    return {"pixel_values": _noise(1, 3, size, size)}


def _captioned_image() -> dict[str, Any]:
    return {**_text(), **_image()}


def _image_in_text(**more: Any) -> dict[str, Any]:
    image = WORDS.index(architectures.IMAGE)
    ids = torch.tensor([[5, image, image, image, image, 6, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def _is_image() -> torch.Tensor:
    return torch.tensor([[0, 1, 1, 1, 1, 0, 0]])


_HEADS = "ForSequenceClassification ForTokenClassification ForQuestionAnswering".split()

MODELS: tuple[tuple[str, Callable[[], nn.Module], Callable[[], dict[str, Any]]], ...] = (
    ("gpt2", models.new_gpt2, _text),
    ("llama", models.new_llama, _text),
    ("bert", models.new_bert, _text),
    ("t5", models.new_t5, _two_texts),
    ("bart", architectures.new_bart, _two_texts),
    ("rwkv", architectures.new_rwkv, _text),
    ("recurrent_gemma", architectures.new_recurrent_gemma, _text),
    ("minimax", architectures.new_minimax, _text),
    ("llava", architectures.new_llava, lambda: _image_in_text(**_image())),
    (
        "gemma3_vision",
        architectures.new_gemma3_vision,
        lambda: _image_in_text(**_image(), token_type_ids=_is_image()),
    ),
    (
        "qwen2_vl",
        architectures.new_qwen2_vl,
        lambda: _image_in_text(
            mm_token_type_ids=_is_image(),
            pixel_values=_noise(16, 12),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
        ),
    ),
    *(
        (kind.name, kind.new, _text)
        for kind in (
            *architectures.DECODERS, *architectures.ENCODERS, *architectures.RECURRENT,
        )
    ),
    *(
        (
            f"{family}{head}",
            partial(built, f"{family}{head}", f"{family}Config", **_BERT),
            _text,
        )
        for family in ("Bert", "Roberta", "Electra", "Albert")
        for head in (*_HEADS, "ForMaskedLM")
        if (family, head) != ("Bert", "ForMaskedLM")
    ),
    *(
        (
            f"{family}ForMultipleChoice",
            partial(built, f"{family}ForMultipleChoice", f"{family}Config", **_BERT),
            _choices,
        )
        for family in ("Bert", "Roberta")
    ),
    *(
        (name, partial(built, name, "BertConfig", **_BERT), _text)
        for name in ("BertForPreTraining", "BertForNextSentencePrediction")
    ),
    (
        "deberta_v2",
        partial(
            built, "DebertaV2ForMaskedLM", "DebertaV2Config", **_BERT, relative_attention=True,
            pos_att_type=["p2c", "c2p"], type_vocab_size=0,
        ),
        _text,
    ),
    ("phi", partial(built, "PhiForCausalLM", "PhiConfig", **_LLAMA), _text),
    ("olmo2", partial(built, "Olmo2ForCausalLM", "Olmo2Config", **_LLAMA), _text),
    ("cohere", partial(built, "CohereForCausalLM", "CohereConfig", **_LLAMA), _text),
    (
        "gptj",
        partial(
            built, "GPTJForCausalLM", "GPTJConfig", vocab_size=len(WORDS), n_positions=64,
            n_embd=16, n_layer=2, n_head=2, rotary_dim=4, **_SPECIAL,
        ),
        _text,
    ),
    (
        "gpt_neo",
        partial(
            built, "GPTNeoForCausalLM", "GPTNeoConfig", vocab_size=len(WORDS), hidden_size=16,
            num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64, window_size=4, **_SPECIAL,
        ),
        _text,
    ),
    (
        "falcon",
        partial(
            built, "FalconForCausalLM", "FalconConfig", vocab_size=len(WORDS), hidden_size=16,
            num_hidden_layers=2, num_attention_heads=2, **_SPECIAL,
        ),
        _text,
    ),
    (
        "pegasus",
        partial(built, "PegasusForConditionalGeneration", "PegasusConfig", **_SEQ2SEQ),
        _two_texts,
    ),
    (
        "whisper",
        partial(
            built, "WhisperForConditionalGeneration", "WhisperConfig", **_SEQ2SEQ,
            num_mel_bins=4, max_source_positions=8, max_target_positions=8,
        ),
        lambda: {
            "input_features": _noise(1, 4, 16), "decoder_input_ids": token_ids("a dog"),
        },
    ),
    ("wav2vec2", partial(built, "Wav2Vec2ForCTC", "Wav2Vec2Config", **_SOUND),
     lambda: {"input_values": _noise(1, 64)}),
    (
        "vit",
        partial(built, "ViTForImageClassification", "ViTConfig", **_IMAGE, num_labels=3),
        _image,
    ),
    (
        "vit_masked",
        partial(built, "ViTForMaskedImageModeling", "ViTConfig", **_IMAGE, encoder_stride=4),
        _image,
    ),
    (
        "dinov2",
        partial(built, "Dinov2ForImageClassification", "Dinov2Config", **_IMAGE, num_labels=3),
        _image,
    ),
    (
        "clip",
        partial(
            built, "CLIPModel", "CLIPConfig", projection_dim=8,
            text_config={**_BERT, "eos_token_id": EOS}, vision_config=_IMAGE,
        ),
        _captioned_image,
    ),
    (
        "siglip",
        partial(built, "SiglipModel", "SiglipConfig", text_config=_BERT, vision_config=_IMAGE),
        _captioned_image,
    ),
    (
        "swin",
        partial(
            built, "SwinForImageClassification", "SwinConfig", image_size=16, patch_size=2,
            embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4, num_labels=3,
        ),
        lambda: _image(16),
    ),
    (
        "convnext",
        partial(
            built, "ConvNextForImageClassification", "ConvNextConfig", **_STAGES, num_stages=2,
            patch_size=2,
        ),
        lambda: _image(16),
    ),
    (
        "resnet",
        partial(
            built, "ResNetForImageClassification", "ResNetConfig", **_STAGES, embedding_size=8,
        ),
        lambda: _image(32),
    ),
)  # fmt: skip
"""Small models of transformers with their arguments."""
