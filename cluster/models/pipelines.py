"""The pipelines that the jobs run, a row each: what differs between them, as data.

A row says how the call is made and what its configuration files say of sizes; the method itself
needs none of it (`meancache.hooks.pipelines`). Reads configurations, never weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cluster.models.configured import (
    above_one_of_guidance,
    cogview4_mu,
    expansions,
    flux_2_mu,
    hidden_by_concatenation,
    hunyuan_video_15_size,
    image_blocks,
    kontext_size,
    ltx_ratios,
    named_ratios,
    of_128_latents,
    of_a_megapixel,
    one_frame,
    other_than_one_of_guidance,
    patch_sizes,
    qwen_image_blocks,
    sample_size,
    samples,
    time_and_side,
    tokens_of,
    two_by_two,
    wan_factors,
    with_a_negative_prompt,
)
from cluster.models.grids import linear_quadratic, whole_timesteps
from cluster.models.kinds import Config, Kind, Size


def _video(
    width: int | None, height: int | None, frames: int, steps: int = 50, **others: Any
) -> Config:
    size = {"height": height, "width": width, "num_frames": frames}
    return {**size, "num_inference_steps": steps, **others}


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

_FLUX_2 = Kind(
    arguments=_image(50, guidance_scale=4.0, max_sequence_length=512),
    optional=(),
    compression=image_blocks,
    patch=two_by_two,
    size=of_128_latents,
    shifts=True,
    mu=flux_2_mu,
    parallel=("transformer_flux2", "xFuserFlux2Transformer2DWrapper"),
    tile=sample_size,
    shares_padded_text=True,
)

_WAN = Kind(
    arguments=_video(832, 480, 81, guidance_scale=5.0, max_sequence_length=512),
    optional=("negative_prompt",),
    compression=wan_factors,
    patch=time_and_side,
    fps=16.0,
    spacing=None,
    calls=above_one_of_guidance,
    parallel=("transformer_wan", "xFuserWanTransformer3DWrapper"),
    tile=lambda vae: (math.inf, 256),
    by_frames=True,
)

# By the class name of the diffusers pipeline.
_FROM_TEXT: Mapping[str, Kind] = {
    "HunyuanVideoPipeline": Kind(
        arguments=_video(1280, 720, 129, guidance_scale=6.0, max_sequence_length=256),
        optional=_TRUE_CFG,
        compression=named_ratios,
        patch=patch_sizes,
        fps=24.0,
        calls=with_a_negative_prompt,
        parallel=("transformer_hunyuan_video", "xFuserHunyuanVideoTransformer3DWrapper"),
        tile=lambda vae: (32, 384),
        tiling=_HUNYUAN_TILES,
        masked_texts=_TEXT,
        shares_any_video=True,
    ),
    "HunyuanVideo15Pipeline": Kind(
        arguments=_video(None, None, 121, guidance_scale=None),
        optional=("negative_prompt",),
        compression=named_ratios,
        patch=patch_sizes,
        fps=24.0,
        size=hunyuan_video_15_size,
        calls=other_than_one_of_guidance,
        guider=True,
        parallel=("transformer_hunyuan_video15", "xFuserHunyuanVideo15Transformer3DWrapper"),
        tile=lambda vae: (math.inf, 256),
        masked_texts={**_TEXT, "encoder_hidden_states_2": "encoder_attention_mask_2"},
        adapters=False,
    ),
    "WanPipeline": _WAN,
    # By its text alone: rows bring no video and no mask.
    "WanVACEPipeline": replace(
        _WAN, parallel=("transformer_wan_vace", "xFuserWanVACETransformer3DWrapper")
    ),
    "LTXPipeline": Kind(
        arguments=_video(704, 512, 161, guidance_scale=3.0, max_sequence_length=128),
        optional=("negative_prompt",),
        compression=ltx_ratios,
        patch=patch_sizes,
        fps=25.0,
        shifts=True,
        masked_texts=_TEXT,
    ),
    # A step has a third forward for the guidance by skipped layers, and one for that of each
    # modality by itself, however large guidance_scale is.
    "LTX2Pipeline": Kind(
        arguments=_video(768, 512, 121, 30, guidance_scale=3.0, max_sequence_length=1024),
        optional=("negative_prompt",),
        compression=ltx_ratios,
        patch=patch_sizes,
        fps=24.0,
        shifts=True,
        calls=lambda arguments: 3,
        parallel=("transformer_ltx2", "xFuserLTX2VideoTransformer3DWrapper"),
        # xDiT gathers the angles of no other kind of rotary embedding.
        shares=lambda transformer: transformer.get("rope_type") == "split",
        sound=True,
    ),
    "Kandinsky5T2VPipeline": Kind(
        arguments=_video(768, 512, 121, guidance_scale=5.0, max_sequence_length=512),
        optional=("negative_prompt",),
        compression=named_ratios,
        patch=time_and_side,
        heads=lambda transformer: transformer["model_dim"] // sum(transformer["axes_dims"]),
        fps=24.0,
        spacing=None,
        calls=above_one_of_guidance,
        tile=lambda vae: (32, 384),
        tiling=_HUNYUAN_TILES,
    ),
    "MochiPipeline": Kind(
        arguments=_video(848, 480, 19, 64, guidance_scale=4.5, max_sequence_length=256),
        optional=("negative_prompt",),
        compression=expansions,
        patch=one_frame,
        fps=30.0,
        spacing=linear_quadratic,
        compiles=False,
    ),
    "FluxPipeline": Kind(
        arguments=_image(28, guidance_scale=3.5, max_sequence_length=512),
        optional=_TRUE_CFG,
        compression=image_blocks,
        patch=two_by_two,
        size=of_128_latents,
        shifts=True,
        calls=with_a_negative_prompt,
        parallel=("transformer_flux", "xFuserFlux1Transformer2DWrapper"),
        tile=sample_size,
        shares_padded_text=True,
    ),
    "ChromaPipeline": Kind(
        arguments=_image(35, guidance_scale=5.0, max_sequence_length=512),
        optional=("negative_prompt",),
        compression=image_blocks,
        patch=two_by_two,
        size=of_128_latents,
        shifts=True,
        calls=above_one_of_guidance,
        tile=sample_size,
    ),
    # FLUX.2 and Klein, by their text alone.
    "Flux2Pipeline": _FLUX_2,
    "Flux2KleinPipeline": replace(_FLUX_2, calls=above_one_of_guidance),
    "CogView4Pipeline": Kind(
        arguments=_image(50, guidance_scale=5.0, max_sequence_length=1024),
        optional=("negative_prompt",),
        compression=image_blocks,
        patch=one_frame,
        size=samples,
        spacing=whole_timesteps,
        shifts=True,
        mu=cogview4_mu,
        calls=above_one_of_guidance,
        tile=sample_size,
        compiles=False,
    ),
    "QwenImagePipeline": Kind(
        arguments=_image(50, true_cfg_scale=4.0, max_sequence_length=512),
        optional=("negative_prompt", "guidance_scale"),
        compression=qwen_image_blocks,
        patch=two_by_two,
        size=of_128_latents,
        shifts=True,
        calls=with_a_negative_prompt,
        parallel=("transformer_qwen", "xFuserQwenImageTransformerWrapper"),
        tile=lambda vae: (1, 256),
        by_frames=True,
        masked_texts={"encoder_hidden_states": "encoder_hidden_states_mask"},
    ),
    # By its text alone.
    "QwenImage21Pipeline": Kind(
        arguments=_image(40, true_cfg_scale=1.0),
        optional=("negative_prompt",),
        compression=lambda vae: (1, vae["scale_factor_spatial"]),
        patch=lambda transformer: (1, 1),
        sides=2,
        size=lambda transformer, pixels: (1024, 1024),
        shifts=True,
        calls=with_a_negative_prompt,
    ),
    "ZImagePipeline": Kind(
        arguments=_image(50, guidance_scale=5.0, max_sequence_length=512),
        optional=("negative_prompt",),
        compression=image_blocks,
        patch=two_by_two,
        heads=lambda transformer: transformer["n_heads"],
        size=of_128_latents,
        shifts=True,
        tile=sample_size,
    ),
    "StableDiffusion3Pipeline": Kind(
        arguments=_image(28, guidance_scale=7.0, max_sequence_length=256),
        optional=("negative_prompt",),
        compression=image_blocks,
        patch=one_frame,
        size=samples,
        spacing=None,
        shifts=True,
        tile=sample_size,
        compiles=False,
    ),
}


def _from_image(pipeline: str, **changes: Any) -> Kind:
    """The row of a pipeline that draws from an image too, by that of its model's other one."""
    return replace(_FROM_TEXT[pipeline], takes_image=True, **changes)


def _edit(pipeline: str, size: Callable[[Config, int, Size], Size], **changes: Any) -> Kind:
    return _from_image(pipeline, image_size=size, image_tokens=tokens_of(size), **changes)


_FROM_IMAGES: Mapping[str, Kind] = {
    "HunyuanVideoImageToVideoPipeline": _from_image(
        "HunyuanVideoPipeline",
        arguments=_video(1280, 720, 129, guidance_scale=1.0, max_sequence_length=256),
        hidden_frames=hidden_by_concatenation,
        shares=lambda transformer: transformer.get("image_condition_type") == "latent_concat",
    ),
    "HunyuanVideo15ImageToVideoPipeline": _from_image(
        "HunyuanVideo15Pipeline", image_size=hunyuan_video_15_size, sized=False
    ),
    "WanImageToVideoPipeline": _from_image("WanPipeline"),
    "LTXImageToVideoPipeline": _from_image("LTXPipeline"),
    "FluxKontextPipeline": _edit(
        "FluxPipeline",
        kontext_size,
        # Its call makes any size one of max_area.
        derived=lambda arguments: {"max_area": arguments["height"] * arguments["width"]},
    ),
    "QwenImageEditPipeline": _edit("QwenImagePipeline", of_a_megapixel),
    "QwenImageEditPlusPipeline": _edit("QwenImagePipeline", of_a_megapixel),
}

PIPELINES: Mapping[str, Kind] = {**_FROM_TEXT, **_FROM_IMAGES}
"""A pipeline's row by its class name in diffusers."""
