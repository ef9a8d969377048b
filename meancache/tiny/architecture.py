"""The embedded model's sizes: diffusers' own HunyuanVideo classes, configured small."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from meancache.tiny.latents import CELL, CHANNELS, GROUP
from meancache.tiny.text import WIDTH, build_text_encoders, build_tokenizers

SHIFT = 7.0  # of the sampling sigmas, as HunyuanVideo's
_POSTERIOR_LOG_VARIANCE = -9.0


def build_transformer() -> HunyuanVideoTransformer3DModel:
    """2.7 M parameters; 48 image tokens for 9 frames of 64x64; 4 heads, so 2 or 4 ranks share it.

    Modulations and the output start at zero: each block begins as the identity.
    """
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=2,
        num_single_layers=4,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(8, 12, 12),
    )
    modulations = [
        module.linear
        for name, module in transformer.named_modules()
        if name.endswith((".norm1", ".norm1_context", ".norm", ".norm_out"))
        and hasattr(module, "linear")
    ]
    for layer in (*modulations, transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return transformer


def build_vae() -> AutoencoderKLHunyuanVideo:
    """Compresses 4 x 8 x 8, with 8 channels; the posterior's spread is fixed and small."""
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        # Four blocks are the least that give these compressions.
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        # Fewer channels a group would be instance norm, which erases the colours.
        norm_num_groups=4,
        scaling_factor=1.0,
        spatial_compression_ratio=CELL,
        temporal_compression_ratio=GROUP,
    )
    weight, bias = vae.quant_conv.weight.data, vae.quant_conv.bias.data
    weight.zero_()
    bias.zero_()
    weight[:CHANNELS, :CHANNELS, 0, 0, 0] = torch.eye(CHANNELS)
    bias[CHANNELS:] = _POSTERIOR_LOG_VARIANCE
    return vae


def build_pipeline(
    transformer: HunyuanVideoTransformer3DModel, vae: AutoencoderKLHunyuanVideo, text_seed: int
) -> HunyuanVideoPipeline:
    """The pipeline around a transformer and a VAE, with the frozen text side of that seed."""
    tokenizer, tokenizer_2 = build_tokenizers()
    text_encoder, text_encoder_2 = build_text_encoders(text_seed)
    return HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )
