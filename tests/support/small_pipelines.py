"""Real pipelines of diffusers with tiny random weights, and a call for each.

Text embeddings are passed as they are, so no text encoder is needed; noise and weights are fixed
by seeds. Sizes are the smallest that keep every part of the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ClassifierFreeGuidance,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from torch.utils import _pytree as pytree
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

STEPS = 10
LATENTS = {"output_type": "latent", "return_dict": False}


@dataclass(frozen=True)
class Case:
    """A pipeline and how to call it.

    Attributes:
        make: builds the pipeline.
        arguments: of its call, all but the seed and the number of steps.
        calls: of the transformer in one step.
        size: of the call's latents in pixels and frames.
        modular: whether it is called as a modular pipeline, whose latents are asked for.
    """

    make: Callable[[], DiffusionPipeline]
    arguments: Mapping[str, Any]
    calls: int = 1
    size: Mapping[str, int] = field(default_factory=lambda: {"height": 32, "width": 48})
    modular: bool = False


@dataclass(frozen=True)
class Small:
    """A case's pipeline, built."""

    case: Case
    pipe: Any

    def draw(self, seed: int = 0, **changes: Any) -> torch.Tensor:
        """The final latents of one call."""
        drawn = self.call(seed, **changes)
        latents: torch.Tensor = drawn if self.case.modular else drawn[0]
        return latents

    def everything(self, seed: int = 0, **changes: Any) -> torch.Tensor:
        """All numbers that one call returns, such as a video's and its sound's, in one row."""
        leaves = pytree.tree_leaves(self.call(seed, **changes))
        return torch.cat([one.flatten() for one in leaves if isinstance(one, torch.Tensor)])

    def call(self, seed: int = 0, **changes: Any) -> Any:
        """What one call returns."""
        arguments = {
            "num_inference_steps": STEPS,
            "generator": torch.Generator().manual_seed(seed),
            **({"output": "latents"} if self.case.modular else LATENTS),
            **self.case.arguments,
            **changes,
        }
        # Some pipelines sample a picture's encoding from the process's own noise.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.pipe(**arguments)


def noise(*shape: int, seed: int = 7) -> torch.Tensor:
    """Numbers for embeddings."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[..., Any], **config: Any) -> Any:
    """A module with random weights that do not depend on what was built before it.

    Heads and modulations that begin at zero are drawn too: nothing may be constant.
    """
    state = torch.get_rng_state()
    torch.manual_seed(0)
    module = build(**config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and parameter.numel():
                parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
            elif not parameter.any() and parameter.numel():
                parameter.normal_(std=0.1)
    torch.set_rng_state(state)
    return module


def scheduler(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}


def image_vae(channels: int) -> AutoencoderKL:
    return seeded(
        AutoencoderKL,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=2,
        scaling_factor=0.36,
        shift_factor=0.1,
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> DiffusionPipeline:
    transformer = seeded(
        FluxTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(
        scheduler=scheduler(**DYNAMIC), vae=image_vae(4), transformer=transformer, **parts
    )


FLUX = {
    "height": 32,
    "width": 48,
    "prompt_embeds": noise(1, 6, 16),
    "pooled_prompt_embeds": noise(1, 16),
}
FLUX_GUIDED = {
    **FLUX,
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "negative_pooled_prompt_embeds": noise(1, 16, seed=8),
    "true_cfg_scale": 3.0,
}


# Of the VAEs of Wan and Qwen-Image, which decode a frame at a time.
VAE_OF_FRAMES = {
    **{"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    **{"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
}


def qwen_image_vae() -> AutoencoderKLQwenImage:
    return seeded(AutoencoderKLQwenImage, **VAE_OF_FRAMES)


def qwen_image() -> DiffusionPipeline:
    transformer = seeded(
        QwenImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return QwenImagePipeline(
        scheduler=scheduler(**DYNAMIC),
        vae=qwen_image_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


QWEN = {
    "height": 32,
    "width": 48,
    "prompt_embeds": noise(1, 6, 16),
    "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
}
QWEN_GUIDED = {
    **QWEN,
    "negative_prompt_embeds": noise(1, 5, 16, seed=8),
    "negative_prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
    "true_cfg_scale": 4.0,
}


def z_image() -> DiffusionPipeline:
    transformer = seeded(
        ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 16, 16],
    )
    return ZImagePipeline(
        scheduler=scheduler(shift=6.0),
        vae=image_vae(4),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


Z_IMAGE = {
    "height": 32,
    "width": 48,
    "prompt_embeds": [noise(6, 16)],
    "negative_prompt_embeds": [noise(5, 16, seed=8)],
    "guidance_scale": 4.0,
    "cfg_normalization": True,
}


def sd3() -> DiffusionPipeline:
    transformer = seeded(
        SD3Transformer2DModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    names = ("text_encoder", "tokenizer")
    parts = {f"{name}{number}": None for name in names for number in ("", "_2", "_3")}
    return StableDiffusion3Pipeline(
        scheduler=scheduler(shift=3.0), vae=image_vae(4), transformer=transformer, **parts
    )


SD3 = {
    "height": 32,
    "width": 48,
    "prompt_embeds": noise(1, 6, 16),
    "pooled_prompt_embeds": noise(1, 16),
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "negative_pooled_prompt_embeds": noise(1, 16, seed=8),
    "guidance_scale": 5.0,
}


def wan_transformer(seed_scale: float = 1.0, **changes: Any) -> WanTransformer3DModel:
    transformer = seeded(
        WanTransformer3DModel,
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 1,
            "rope_max_seq_len": 32,
            **changes,
        },
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(seed_scale)
    return transformer


def wan_vae() -> AutoencoderKLWan:
    return seeded(AutoencoderKLWan, **VAE_OF_FRAMES)


def wan21() -> DiffusionPipeline:
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=scheduler(shift=3.0),
        transformer=wan_transformer(),
    )


def wan22() -> DiffusionPipeline:
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=scheduler(shift=5.0),
        transformer=wan_transformer(),
        transformer_2=wan_transformer(1.5),
        boundary_ratio=0.875,
    )


def wan_i2v() -> DiffusionPipeline:
    return WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=scheduler(shift=3.0),
        transformer=wan_transformer(in_channels=12),
        transformer_2=wan_transformer(in_channels=12),
        boundary_ratio=0.9,
    )


WAN = {
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "prompt_embeds": noise(1, 6, 16),
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "guidance_scale": 5.0,
}


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def hunyuan_transformer(**changes: Any) -> HunyuanVideoTransformer3DModel:
    return seeded(
        HunyuanVideoTransformer3DModel,
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": 16,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 4, 8),
            **changes,
        },
    )


def hunyuan_parts() -> dict[str, Any]:
    vae = seeded(
        AutoencoderKLHunyuanVideo,
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return {"vae": vae, "scheduler": scheduler(shift=7.0), **dict.fromkeys(names)}


def hunyuan_video() -> DiffusionPipeline:
    return HunyuanVideoPipeline(transformer=hunyuan_transformer(), **hunyuan_parts())


def hunyuan_video_i2v() -> DiffusionPipeline:
    transformer = hunyuan_transformer(
        in_channels=9, guidance_embeds=False, image_condition_type="latent_concat"
    )
    return HunyuanVideoImageToVideoPipeline(
        transformer=transformer, image_processor=None, **hunyuan_parts()
    )


def hunyuan_video_token_replace() -> DiffusionPipeline:
    transformer = hunyuan_transformer(image_condition_type="token_replace")
    return HunyuanVideoImageToVideoPipeline(
        transformer=transformer, image_processor=None, **hunyuan_parts()
    )


HUNYUAN = {
    "height": 32,
    "width": 48,
    "num_frames": 9,
    "prompt_embeds": noise(1, 6, 16),
    "pooled_prompt_embeds": noise(1, 16),
    "prompt_attention_mask": torch.ones(1, 6),
}
HUNYUAN_GUIDED = {
    **HUNYUAN,
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "negative_pooled_prompt_embeds": noise(1, 16, seed=8),
    "negative_prompt_attention_mask": torch.ones(1, 6),
    "true_cfg_scale": 3.0,
}


def hunyuan15_parts() -> dict[str, Any]:
    transformer = seeded(
        HunyuanVideo15Transformer3DModel,
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(4, 4, 8),
        target_size=64,
    )
    vae = seeded(
        AutoencoderKLHunyuanVideo15,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": scheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=4.0),
        **dict.fromkeys(names),
    }


def hunyuan_video15() -> DiffusionPipeline:
    pipe = HunyuanVideo15Pipeline(**hunyuan15_parts())
    pipe.vision_num_semantic_tokens = 3
    return pipe


def hunyuan_video15_i2v() -> DiffusionPipeline:
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    pipe = HunyuanVideo15ImageToVideoPipeline(
        image_encoder=seeded(SiglipVisionModel, config=vision),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        **hunyuan15_parts(),
    )
    pipe.vision_num_semantic_tokens = 4
    return pipe


HUNYUAN15 = {
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "prompt_embeds": noise(1, 6, 16),
    "prompt_embeds_mask": torch.ones(1, 6),
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "negative_prompt_embeds_mask": torch.ones(1, 6),
    "prompt_embeds_2": noise(1, 4, 16),
    "prompt_embeds_mask_2": torch.ones(1, 4),
    "negative_prompt_embeds_2": noise(1, 4, 16, seed=8),
    "negative_prompt_embeds_mask_2": torch.ones(1, 4),
}


HUNYUAN15_IMAGE = {
    name: value for name, value in HUNYUAN15.items() if name not in ("height", "width")
}


def ltx_parts() -> dict[str, Any]:
    transformer = seeded(
        LTXVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=16,
    )
    vae = seeded(
        AutoencoderKLLTXVideo,
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    return {
        "scheduler": scheduler(**DYNAMIC),
        "vae": vae,
        "text_encoder": None,
        "tokenizer": None,
        "transformer": transformer,
    }


def ltx_video() -> DiffusionPipeline:
    return LTXPipeline(**ltx_parts())


def ltx_i2v() -> DiffusionPipeline:
    return LTXImageToVideoPipeline(**ltx_parts())


LTX = {
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "prompt_embeds": noise(1, 6, 16),
    "prompt_attention_mask": torch.ones(1, 6),
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "negative_prompt_attention_mask": torch.ones(1, 6),
    "guidance_scale": 3.0,
    "guidance_rescale": 0.7,
}


def chroma() -> DiffusionPipeline:
    transformer = seeded(
        ChromaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=scheduler(**DYNAMIC),
        vae=image_vae(4),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


CHROMA = {
    "height": 32,
    "width": 48,
    "prompt_embeds": noise(1, 6, 16),
    "prompt_attention_mask": torch.ones(1, 6),
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "negative_prompt_attention_mask": torch.ones(1, 6),
    "guidance_scale": 3.0,
}


def cogview4() -> DiffusionPipeline:
    transformer = seeded(
        CogView4Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    )
    return CogView4Pipeline(
        scheduler=scheduler(shift=2.0),
        vae=image_vae(4),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


COGVIEW4 = {
    "height": 32,
    "width": 48,
    "prompt_embeds": noise(1, 16, 16),
    "negative_prompt_embeds": noise(1, 16, 16, seed=8),
    "guidance_scale": 3.0,
}


def video(frames: int, height: int = 32, width: int = 48) -> dict[str, int]:
    return {"height": height, "width": width, "num_frames": frames}


CASES = {
    "FLUX.1": Case(flux, FLUX),
    "FLUX.1 with true guidance": Case(flux, FLUX_GUIDED, calls=2),
    "Qwen-Image": Case(qwen_image, QWEN),
    "Qwen-Image with renormalised guidance": Case(qwen_image, QWEN_GUIDED, calls=2),
    "Z-Image": Case(z_image, Z_IMAGE),
    "SD3": Case(sd3, SD3),
    "Wan 2.1": Case(wan21, WAN, calls=2, size=video(5)),
    "Wan 2.2": Case(wan22, {**WAN, "guidance_scale_2": 4.0}, calls=2, size=video(5)),
    "Wan 2.2 image to video": Case(wan_i2v, {**WAN, "image": picture()}, calls=2, size=video(5)),
    "HunyuanVideo": Case(hunyuan_video, HUNYUAN, size=video(9)),
    "HunyuanVideo with true guidance": Case(hunyuan_video, HUNYUAN_GUIDED, calls=2, size=video(9)),
    "HunyuanVideo image to video": Case(
        hunyuan_video_i2v, {**HUNYUAN_GUIDED, "image": picture()}, calls=2, size=video(9)
    ),
    "HunyuanVideo image to video, token replace": Case(
        hunyuan_video_token_replace, {**HUNYUAN, "image": picture()}, size=video(9)
    ),
    "HunyuanVideo-1.5 image to video": Case(
        hunyuan_video15_i2v,
        {**HUNYUAN15_IMAGE, "image": picture()},
        calls=2,
        size=video(5, 48, 64),
    ),
    "HunyuanVideo-1.5": Case(hunyuan_video15, HUNYUAN15, calls=2, size=video(5)),
    "LTX-Video": Case(ltx_video, LTX, size=video(9, 64, 96)),
    "LTX-Video image to video": Case(
        ltx_i2v, {**LTX, "image": picture().resize((96, 64))}, size=video(9, 64, 96)
    ),
    # Two that follow the contract, and for which nothing was done.
    "Chroma": Case(chroma, CHROMA, calls=2),
    "CogView4": Case(cogview4, COGVIEW4, calls=2),
}


def build(name: str) -> Small:
    """The named case, with its pipeline."""
    case = CASES[name]
    return Small(case, quiet(case.make()))
