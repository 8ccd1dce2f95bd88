"""Tiny pipelines of diffusers, with random weights, and their plain calls under hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from tests import models


def _vae() -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _scheduler() -> Any:
    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def unet_pipeline() -> Any:
    """Return a pipeline of the kind of Stable Diffusion: text encoder, UNet, decoder."""
    torch.manual_seed(0)
    tokenizer = models.tokenizer()
    tokenizer.model_max_length = 8
    text = CLIPTextConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
    )  # fmt: skip
    made = StableDiffusionPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=_scheduler(), safety_checker=None, feature_extractor=None, image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return _quiet(made)


def transformer_pipeline() -> Any:
    """Return a pipeline with a transformer as denoiser, whose prompts are classes."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return _quiet(DiTPipeline(transformer=transformer, vae=_vae(), scheduler=_scheduler()))


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    for one in pipeline.components.values():
        if isinstance(one, torch.nn.Module):
            one.eval()
    return pipeline


def seeds(*numbers: int) -> list[torch.Generator]:
    """Return a generator for each number."""
    return [torch.Generator().manual_seed(number) for number in numbers]


def call_with_hooks(
    pipeline: Any, hooks: Mapping[Any, Callable[[int, Any], Any]], *args: Any, **kwargs: Any
) -> Any:
    """Call a pipeline as it is; hooks get the number of a module's call, and its output."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            calls = iter(range(1000))

            def at_call(
                _: Any, args: Any, output: Any, hook: Any = hook, calls: Any = calls
            ) -> Any:
                return hook(next(calls), output)

            stack.callback(module.register_forward_hook(at_call).remove)
        return pipeline(*args, **kwargs)
