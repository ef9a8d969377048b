"""The pipelines that the jobs run, a row each: what differs between them, as data.

A row says how the call is made and what its configuration files say of sizes; the method itself
needs none of it (`meancache.hooks.pipelines`). Reads configurations, never weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meancache.json_values import is_number

Config = Mapping[str, Any]

# How the names of a pipeline's components begin: those that read, and those that denoise.
TEXT = ("text_encoder", "tokenizer")
DENOISERS = ("transformer",)


@dataclass(frozen=True)
class Kind:
    """A pipeline class as the jobs see it.

    Attributes:
        arguments: of its call, that every run names, with the call's own defaults, taken where a
            user gives none; None where `size` or a guider says. With num_frames among them its
            outputs are videos, else images.
        optional: of its call, passed on where a user gives them.
        compression: the VAE's configuration -> (frames, pixels along an axis) of a latent.
        patch: the transformer's configuration -> (frames, pixels along an axis) of a token, in
            latents.
        heads: key of the transformer's configuration that counts attention heads.
        fps: frames a second of its videos; 0 for images.
        size: (transformer's configuration, pixels of a latent) -> (height, width), for a call that
            leaves its defaults open.
        even_sigmas: its call gives the scheduler sigmas in equal steps from 1; else the scheduler
            makes its own.
        shifts: its call shifts the noise levels with the number of tokens.
        calls: the call's arguments -> forwards of a transformer in a step that is computed.
        guider: its guidance scale belongs to a component, not to its call.
        parallel: (module, class) of xDiT's sequence-parallel transformer, or None.
        tile: the VAE's configuration -> (frames, pixels along an axis) of the largest output that
            it decodes in one piece; None where it is not known, or the decoder carries features
            from one tile to the next, so that ranks cannot share them.
        tiling: of the VAE's enable_tiling, where its tiles are not of the sizes that diffusers
            sets.
        shares_any_video: ranks whose number divides the heads share out a video of any number of
            tokens.
        shares_padded_text: xDiT's ranks share out a text of max_sequence_length tokens.
        masked_texts: of the transformer's forward: the argument with a text's embeddings -> that
            with its mask, where the pipeline pads texts and masks what it added.
        compiles: diffusers names the blocks of its transformer that repeat.
    """

    arguments: Mapping[str, Any]
    optional: tuple[str, ...]
    compression: Callable[[Config], tuple[int, int]]
    patch: Callable[[Config], tuple[int, int]]
    heads: str = "num_attention_heads"
    fps: float = 0.0
    size: Callable[[Config, int], tuple[int, int]] | None = None
    even_sigmas: bool = True
    shifts: bool = False
    calls: Callable[[Config], int] = lambda arguments: 1
    guider: bool = False
    parallel: tuple[str, str] | None = None
    tile: Callable[[Config], tuple[float, int]] | None = None
    tiling: Mapping[str, int] = field(default_factory=dict)
    shares_any_video: bool = False
    shares_padded_text: bool = False
    masked_texts: Mapping[str, str] = field(default_factory=dict)
    compiles: bool = True

    @property
    def is_image(self) -> bool:
        return "num_frames" not in self.arguments

    @property
    def takes(self) -> tuple[str, ...]:
        """All arguments of the call that a job passes on."""
        return (*self.arguments, *self.optional)


def _with_a_negative_prompt(arguments: Config) -> int:
    scale, negative = arguments.get("true_cfg_scale"), arguments.get("negative_prompt")
    return 2 if negative is not None and _above_one(scale) else 1


def _above_one_of_guidance(arguments: Config) -> int:
    return 2 if _above_one(arguments.get("guidance_scale")) else 1


def _other_than_one_of_guidance(arguments: Config) -> int:
    return 1 if arguments.get("guidance_scale") == 1 else 2


def _above_one(scale: Any) -> bool:
    return is_number(scale) and scale > 1


def _named_ratios(vae: Config) -> tuple[int, int]:
    return vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]


def _image_blocks(vae: Config) -> tuple[int, int]:
    return 1, 2 ** (len(vae["block_out_channels"]) - 1)


def _qwen_image_blocks(vae: Config) -> tuple[int, int]:
    return 1, 2 ** len(vae["temperal_downsample"])  # the key's own spelling


def _wan_factors(vae: Config) -> tuple[int, int]:
    # Wan 2.1 checkpoints are older than the keys, whose defaults are theirs.
    return vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)


def _ltx_ratios(vae: Config) -> tuple[int, int]:
    halved = 2 ** sum(vae["spatio_temporal_scaling"])
    temporal, spatial = (vae.get(f"{axis}_compression_ratio") for axis in ("temporal", "spatial"))
    return temporal or vae["patch_size_t"] * halved, spatial or vae["patch_size"] * halved


def _patch_sizes(transformer: Config) -> tuple[int, int]:
    return transformer["patch_size_t"], transformer["patch_size"]


def _two_by_two(transformer: Config) -> tuple[int, int]:
    return 1, 2


def _samples(transformer: Config, pixels: int) -> tuple[int, int]:
    return transformer["sample_size"] * pixels, transformer["sample_size"] * pixels


def _of_128_latents(transformer: Config, pixels: int) -> tuple[int, int]:
    return 128 * pixels, 128 * pixels


def _sample_size(vae: Config) -> tuple[int, int]:
    return 1, vae.get("sample_size", 32)


def _hunyuan_video_15_size(transformer: Config, pixels: int) -> tuple[int, int]:
    """The size of 9:16 whose pixels are about target_size squared, as the pipeline's call has it:
    along the sizes of at most that many patches, the first that is closest and not narrower."""
    patches = round((transformer["target_size"] / pixels) ** 2)
    rows, columns = patches, 1
    best, furthest = (0, 0), math.inf
    while rows > 0:
        surplus = round(rows / columns, 5) - 9 / 16
        if max(rows, columns) <= 4 * min(rows, columns) and 0 <= surplus < furthest:
            best, furthest = (rows, columns), surplus
        if (columns + 1) * rows <= patches:
            columns += 1
        else:
            rows -= 1
    if best == (0, 0):
        raise ValueError(f"target_size {transformer['target_size']} is too small")
    return best[0] * pixels, best[1] * pixels


def _video(width: int | None, height: int | None, frames: int, **others: Any) -> Config:
    size = {"height": height, "width": width, "num_frames": frames}
    return {**size, "num_inference_steps": 50, **others}


def _image(steps: int, **others: Any) -> Config:
    return {"height": None, "width": None, "num_inference_steps": steps, **others}


_TEXT = {"encoder_hidden_states": "encoder_attention_mask"}
_TRUE_CFG = ("true_cfg_scale", "negative_prompt")

# Tiles overlap, and what overlaps is decoded again: with diffusers' own tiles, of 256 pixels and 16
# frames, all of a video of 1280x720x129 2.6 times over, with these 1.7 times. They take 10.4 GiB,
# and much larger ones would have tensors of more numbers than 32 bits count. They are the same on
# every machine, as where tiles meet decides pixels.
_HUNYUAN_TILES = {
    **{"tile_sample_min_height": 384, "tile_sample_stride_height": 320},
    **{"tile_sample_min_width": 384, "tile_sample_stride_width": 320},
    **{"tile_sample_min_num_frames": 32, "tile_sample_stride_num_frames": 28},
}

# By the class name of the diffusers pipeline.
PIPELINES: Mapping[str, Kind] = {
    "HunyuanVideoPipeline": Kind(
        arguments=_video(1280, 720, 129, guidance_scale=6.0, max_sequence_length=256),
        optional=_TRUE_CFG,
        compression=_named_ratios,
        patch=_patch_sizes,
        fps=24.0,
        calls=_with_a_negative_prompt,
        parallel=("transformer_hunyuan_video", "xFuserHunyuanVideoTransformer3DWrapper"),
        tile=lambda vae: (32, 384),
        tiling=_HUNYUAN_TILES,
        masked_texts=_TEXT,
        shares_any_video=True,
    ),
    "HunyuanVideo15Pipeline": Kind(
        arguments=_video(None, None, 121, guidance_scale=None),
        optional=("negative_prompt",),
        compression=_named_ratios,
        patch=_patch_sizes,
        fps=24.0,
        size=_hunyuan_video_15_size,
        calls=_other_than_one_of_guidance,
        guider=True,
        parallel=("transformer_hunyuan_video15", "xFuserHunyuanVideo15Transformer3DWrapper"),
        tile=lambda vae: (math.inf, 256),
        masked_texts={**_TEXT, "encoder_hidden_states_2": "encoder_attention_mask_2"},
    ),
    "WanPipeline": Kind(
        arguments=_video(832, 480, 81, guidance_scale=5.0, max_sequence_length=512),
        optional=("negative_prompt",),
        compression=_wan_factors,
        patch=lambda transformer: tuple(transformer["patch_size"][:2]),
        fps=16.0,
        even_sigmas=False,
        calls=_above_one_of_guidance,
        parallel=("transformer_wan", "xFuserWanTransformer3DWrapper"),
    ),
    "LTXPipeline": Kind(
        arguments=_video(704, 512, 161, guidance_scale=3.0, max_sequence_length=128),
        optional=("negative_prompt",),
        compression=_ltx_ratios,
        patch=_patch_sizes,
        fps=25.0,
        shifts=True,
        masked_texts=_TEXT,
    ),
    "FluxPipeline": Kind(
        arguments=_image(28, guidance_scale=3.5, max_sequence_length=512),
        optional=_TRUE_CFG,
        compression=_image_blocks,
        patch=_two_by_two,
        size=_of_128_latents,
        shifts=True,
        calls=_with_a_negative_prompt,
        parallel=("transformer_flux", "xFuserFlux1Transformer2DWrapper"),
        tile=_sample_size,
        shares_padded_text=True,
    ),
    "QwenImagePipeline": Kind(
        arguments=_image(50, true_cfg_scale=4.0, max_sequence_length=512),
        optional=("negative_prompt", "guidance_scale"),
        compression=_qwen_image_blocks,
        patch=_two_by_two,
        size=_of_128_latents,
        shifts=True,
        calls=_with_a_negative_prompt,
        parallel=("transformer_qwen", "xFuserQwenImageTransformerWrapper"),
        masked_texts={"encoder_hidden_states": "encoder_hidden_states_mask"},
    ),
    "ZImagePipeline": Kind(
        arguments=_image(50, guidance_scale=5.0, max_sequence_length=512),
        optional=("negative_prompt",),
        compression=_image_blocks,
        patch=_two_by_two,
        heads="n_heads",
        size=_of_128_latents,
        shifts=True,
        tile=_sample_size,
    ),
    "StableDiffusion3Pipeline": Kind(
        arguments=_image(28, guidance_scale=7.0, max_sequence_length=256),
        optional=("negative_prompt",),
        compression=_image_blocks,
        patch=lambda transformer: (1, transformer["patch_size"]),
        size=_samples,
        even_sigmas=False,
        shifts=True,
        tile=_sample_size,
        compiles=False,
    ),
}
