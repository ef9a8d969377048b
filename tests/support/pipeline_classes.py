"""All pipeline classes of diffusers that are built here, with small random weights, by their names.

Those in this module are variants of a pipeline in `small_pipelines` on the same parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from PIL import Image

from tests.support.image_pipelines import wan_vace
from tests.support.modular_pipelines import MODULAR
from tests.support.own_pipelines import OWN
from tests.support.small_pipelines import (
    CASES,
    CHROMA,
    COGVIEW4,
    DYNAMIC,
    FLUX,
    HUNYUAN,
    LTX,
    QWEN_GUIDED,
    SD3,
    WAN,
    Z_IMAGE,
    Case,
    chroma,
    cogview4,
    flux,
    hunyuan_parts,
    hunyuan_transformer,
    image_vae,
    ltx_video,
    noise,
    picture,
    qwen_image,
    scheduler,
    sd3,
    seeded,
    wan21,
    wan_transformer,
    z_image,
)


def mask() -> Image.Image:
    """The left half of the picture."""
    return Image.frombytes("L", (48, 32), bytes([255] * 24 + [0] * 24) * 32)


IMAGE = {"image": picture(), "strength": 0.6}
INPAINT = {**IMAGE, "mask_image": mask()}


def on(name: str, parts: Callable[[], Any], **changes: Any) -> Callable[[], Any]:
    """The class on the parts of another pipeline, with some of them changed."""

    def make() -> Any:
        found = dict(parts().components)
        made = {key: value() if callable(value) else value for key, value in changes.items()}
        cls = getattr(diffusers, name)
        expected, optional = cls._get_signature_keys(cls)
        taken = {key: found.get(key) for key in expected if key in found or key not in optional}
        return cls(**{**taken, **made})

    return make


def flux_transformer(in_channels: int) -> Any:
    return seeded(
        diffusers.FluxTransformer2DModel,
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def flux_controlnet() -> Any:
    return seeded(
        diffusers.FluxControlNetModel,
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


def sd3_controlnet(extra: int = 0) -> Any:
    return seeded(
        diffusers.SD3ControlNetModel,
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        extra_conditioning_channels=extra,
    )


def sd3_transformer(channels: int) -> Any:
    return seeded(
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        in_channels=channels,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )


def cogview4_transformer() -> Any:
    return seeded(
        diffusers.CogView4Transformer2DModel,
        in_channels=8,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    )


def z_image_controlnet(transformer: Any, **changes: Any) -> Any:
    """A ControlNet on the embedders of the transformer, as diffusers builds it."""
    controlnet = seeded(
        diffusers.ZImageControlNetModel,
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        **changes,
    )
    return diffusers.ZImageControlNetModel.from_transformer(controlnet, transformer)


def z_image_with_controlnet(name: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        parts = dict(z_image().components)
        controlnet = z_image_controlnet(parts["transformer"], **changes)
        return getattr(diffusers, name)(controlnet=controlnet, **parts)

    return make


def qwen_controlnet(extra: int = 0) -> Any:
    return seeded(
        diffusers.QwenImageControlNetModel,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        extra_condition_channels=extra,
    )


def flux2(name: str) -> Callable[[], Any]:
    def make() -> Any:
        transformer = seeded(
            diffusers.Flux2Transformer2DModel,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        )
        vae = seeded(
            diffusers.AutoencoderKLFlux2,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
        )
        return getattr(diffusers, name)(
            scheduler=scheduler(**DYNAMIC), vae=vae, text_encoder=None, tokenizer=None,
            transformer=transformer,
        )  # fmt: skip

    return make


FLUX2 = {"height": 32, "width": 48, "prompt_embeds": noise(1, 6, 16)}
KLEIN = {**FLUX2, "negative_prompt_embeds": noise(1, 6, 16, seed=8), "guidance_scale": 3.0}


def chroma_transformer() -> Any:
    """With an entry in its configuration that the pipeline for inpainting looks for."""
    transformer = chroma().transformer
    transformer.register_to_config(guidance_embeds=False)
    return transformer


def lumina2() -> Any:
    transformer = seeded(
        diffusers.Lumina2Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=scheduler(shift=3.0),
        vae=image_vae(4),
        text_encoder=None,
        tokenizer=None,
    )


def aura_flow() -> Any:
    transformer = seeded(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=image_vae(4),
        transformer=transformer,
        scheduler=scheduler(shift=1.73),
    )


MASKS = {
    "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long),
    "negative_prompt_attention_mask": torch.ones(1, 6, dtype=torch.long),
}
GUIDED = {
    "height": 32,
    "width": 48,
    "prompt_embeds": noise(1, 6, 16),
    "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    "guidance_scale": 4.0,
}


def skyreels() -> Any:
    transformer = hunyuan_transformer(in_channels=8)
    return diffusers.HunyuanSkyreelsImageToVideoPipeline(transformer=transformer, **hunyuan_parts())


def ovis() -> Any:
    transformer = seeded(
        diffusers.OvisImageTransformer2DModel,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.OvisImagePipeline(
        scheduler=scheduler(**DYNAMIC),
        vae=image_vae(4),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


def mochi() -> Any:
    transformer = seeded(
        diffusers.MochiTransformer3DModel,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return diffusers.MochiPipeline(
        scheduler=scheduler(invert_sigmas=True),  # as its checkpoint has it
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


V2V = {key: value for key, value in WAN.items() if key != "num_frames"}

MORE: dict[str, Case] = {
    "FluxImg2ImgPipeline": Case(on("FluxImg2ImgPipeline", flux), {**FLUX, **IMAGE}),
    "FluxInpaintPipeline": Case(on("FluxInpaintPipeline", flux), {**FLUX, **INPAINT}),
    "FluxKontextPipeline": Case(
        on("FluxKontextPipeline", flux),
        {**FLUX, "image": picture(), "_auto_resize": False, "max_area": 32 * 48},
    ),
    "FluxKontextInpaintPipeline": Case(
        on("FluxKontextInpaintPipeline", flux),
        {**FLUX, **INPAINT, "_auto_resize": False, "max_area": 32 * 48},
    ),
    "FluxControlPipeline": Case(
        on("FluxControlPipeline", flux, transformer=lambda: flux_transformer(32)),
        {**FLUX, "control_image": picture()},
    ),
    "FluxControlImg2ImgPipeline": Case(
        on("FluxControlImg2ImgPipeline", flux, transformer=lambda: flux_transformer(32)),
        {**FLUX, **IMAGE, "control_image": picture()},
    ),
    "FluxControlInpaintPipeline": Case(
        on("FluxControlInpaintPipeline", flux, transformer=lambda: flux_transformer(32)),
        {**FLUX, **INPAINT, "control_image": picture()},
    ),
    "FluxFillPipeline": Case(
        on("FluxFillPipeline", flux, transformer=lambda: flux_transformer(16 + 16 + 256)),
        {**FLUX, "image": picture(), "mask_image": mask()},
    ),
    "FluxControlNetPipeline": Case(
        on("FluxControlNetPipeline", flux, controlnet=flux_controlnet),
        {**FLUX, "control_image": picture()},
    ),
    "FluxControlNetImg2ImgPipeline": Case(
        on("FluxControlNetImg2ImgPipeline", flux, controlnet=flux_controlnet),
        {**FLUX, **IMAGE, "control_image": picture()},
    ),
    "FluxControlNetInpaintPipeline": Case(
        on("FluxControlNetInpaintPipeline", flux, controlnet=flux_controlnet),
        {**FLUX, **INPAINT, "control_image": picture()},
    ),
    "Flux2Pipeline": Case(flux2("Flux2Pipeline"), FLUX2),
    "Flux2KleinPipeline": Case(flux2("Flux2KleinPipeline"), KLEIN, calls=2),
    "Flux2KleinKVPipeline": Case(
        flux2("Flux2KleinKVPipeline"), {**FLUX2, "image": picture().resize((96, 64))}
    ),
    "Flux2KleinInpaintPipeline": Case(
        flux2("Flux2KleinInpaintPipeline"), {**KLEIN, **INPAINT}, calls=2
    ),
    "QwenImageImg2ImgPipeline": Case(
        on("QwenImageImg2ImgPipeline", qwen_image), {**QWEN_GUIDED, **IMAGE}, calls=2
    ),
    "QwenImageInpaintPipeline": Case(
        on("QwenImageInpaintPipeline", qwen_image), {**QWEN_GUIDED, **INPAINT}, calls=2
    ),
    "QwenImageControlNetPipeline": Case(
        on("QwenImageControlNetPipeline", qwen_image, controlnet=qwen_controlnet),
        {**QWEN_GUIDED, "control_image": picture()},
        calls=2,
    ),
    "QwenImageControlNetInpaintPipeline": Case(
        on(
            "QwenImageControlNetInpaintPipeline",
            qwen_image,
            controlnet=lambda: qwen_controlnet(extra=4),
        ),
        {**QWEN_GUIDED, "control_image": picture(), "control_mask": mask()},
        calls=2,
    ),
    "StableDiffusion3Img2ImgPipeline": Case(
        on("StableDiffusion3Img2ImgPipeline", sd3), {**SD3, **IMAGE}
    ),
    "StableDiffusion3InpaintPipeline": Case(
        on(
            "StableDiffusion3InpaintPipeline",
            sd3,
            transformer=lambda: sd3_transformer(16),
            vae=lambda: image_vae(16),
        ),
        {**SD3, **INPAINT},
    ),
    "StableDiffusion3ControlNetPipeline": Case(
        on("StableDiffusion3ControlNetPipeline", sd3, controlnet=sd3_controlnet),
        {**SD3, "control_image": picture()},
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": Case(
        on(
            "StableDiffusion3ControlNetInpaintingPipeline",
            sd3,
            controlnet=lambda: sd3_controlnet(extra=1),
        ),
        {**SD3, "control_image": picture(), "control_mask": mask()},
    ),
    "CogView4ControlPipeline": Case(
        on("CogView4ControlPipeline", cogview4, transformer=cogview4_transformer),
        {**COGVIEW4, "control_image": picture()},
        calls=2,
    ),
    "StableDiffusion3PAGPipeline": Case(
        on("StableDiffusion3PAGPipeline", sd3, pag_applied_layers=["blocks.0"]), SD3
    ),
    "StableDiffusion3PAGImg2ImgPipeline": Case(
        on("StableDiffusion3PAGImg2ImgPipeline", sd3, pag_applied_layers=["blocks.0"]),
        {**SD3, **IMAGE},
    ),
    "ZImageImg2ImgPipeline": Case(on("ZImageImg2ImgPipeline", z_image), {**Z_IMAGE, **IMAGE}),
    "ZImageInpaintPipeline": Case(on("ZImageInpaintPipeline", z_image), {**Z_IMAGE, **INPAINT}),
    "ChromaImg2ImgPipeline": Case(
        on("ChromaImg2ImgPipeline", chroma),
        {**CHROMA, **IMAGE, "negative_prompt_attention_mask": torch.ones(1, 6)},
        calls=2,
    ),
    "ChromaInpaintPipeline": Case(
        on("ChromaInpaintPipeline", chroma, transformer=chroma_transformer),
        {**CHROMA, **INPAINT},
        calls=2,
    ),
    "ZImageControlNetPipeline": Case(
        z_image_with_controlnet("ZImageControlNetPipeline", control_in_dim=4),
        {**Z_IMAGE, "control_image": picture()},
    ),
    "ZImageControlNetInpaintPipeline": Case(
        z_image_with_controlnet(
            "ZImageControlNetInpaintPipeline",
            control_in_dim=9,
            add_control_noise_refiner="control_noise_refiner",
        ),
        {**Z_IMAGE, "control_image": picture(), "image": picture(), "mask_image": mask()},
    ),
    "WanVideoToVideoPipeline": Case(
        on("WanVideoToVideoPipeline", wan21),
        {**V2V, "video": [picture()] * 5, "strength": 0.7},
        calls=2,
    ),
    "WanVACEPipeline": Case(partial(wan_vace, num_layers=2), WAN, calls=2),
    "LucyEditPipeline": Case(
        on("LucyEditPipeline", wan21, transformer=lambda: wan_transformer(in_channels=8)),
        {**WAN, "video": [picture()] * 5},
        calls=2,
    ),
    "HunyuanSkyreelsImageToVideoPipeline": Case(
        skyreels, {**HUNYUAN, "image": picture(), "guidance_scale": 1.0}
    ),
    "LTXConditionPipeline": Case(
        on("LTXConditionPipeline", ltx_video, scheduler=lambda: scheduler(shift=3.0)),
        {**LTX, "guidance_rescale": 0.0},
    ),
    "Lumina2Pipeline": Case(lumina2, {**GUIDED, **MASKS}, calls=2),
    "AuraFlowPipeline": Case(aura_flow, {**GUIDED, **MASKS}),
    "OvisImagePipeline": Case(ovis, {**GUIDED, "negative_prompt": None}, calls=2),
    "MochiPipeline": Case(mochi, {**GUIDED, **MASKS, "num_frames": 7}),
}

BASE = {
    "FluxPipeline": "FLUX.1 with true guidance",
    "QwenImagePipeline": "Qwen-Image with renormalised guidance",
    "ZImagePipeline": "Z-Image",
    "StableDiffusion3Pipeline": "SD3",
    "WanPipeline": "Wan 2.2",
    "WanImageToVideoPipeline": "Wan 2.2 image to video",
    "HunyuanVideoPipeline": "HunyuanVideo with true guidance",
    "HunyuanVideoImageToVideoPipeline": "HunyuanVideo image to video, token replace",
    "HunyuanVideo15Pipeline": "HunyuanVideo-1.5",
    "HunyuanVideo15ImageToVideoPipeline": "HunyuanVideo-1.5 image to video",
    "LTXPipeline": "LTX-Video",
    "LTXImageToVideoPipeline": "LTX-Video image to video",
    "ChromaPipeline": "Chroma",
    "CogView4Pipeline": "CogView4",
}
BUILT = {**{name: CASES[case] for name, case in BASE.items()}, **MORE, **OWN, **MODULAR}

MULTISTEP = "with a FlowMatchEulerDiscreteScheduler in place of its checkpoints' multistep one"
CONTROLNET = "its ControlNet runs in every step"
LAST_LEVEL = "with `final_sigmas_type='zero'`: by default it repeats its last noise level"

# What a class takes to work.
NOTES: dict[str, str] = {
    **dict.fromkeys(
        (
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVideoToVideoPipeline",
            "WanVACEPipeline",
            "WanModularPipeline",
            "Wan22ModularPipeline",
            "SkyReelsV2Pipeline",
            "SkyReelsV2ImageToVideoPipeline",
            "SanaPipeline",
            "SanaPAGPipeline",
            "SanaVideoPipeline",
        ),
        MULTISTEP,
    ),
    **{name: CONTROLNET for name in MORE if "ControlNet" in name},
    "SanaControlNetPipeline": f"{MULTISTEP}; {CONTROLNET}",
    "Cosmos2TextToImagePipeline": LAST_LEVEL,
    "Cosmos2VideoToWorldPipeline": LAST_LEVEL,
    "HunyuanImagePipeline": "with a guider that has no momentum",
    "HunyuanVideoFramepackPipeline": "each section of a video is a run of its own",
    "LTX2Pipeline": "one schedule for the video and its sound",
    "LTX2ImageToVideoPipeline": "one schedule for the video and its sound",
    "LTX2ConditionPipeline": "one schedule for the video and its sound",
    "MochiPipeline": "its scheduler counts from the other end: a schedule's are 1 - its sigmas",
    "ChromaInpaintPipeline": "with `guidance_embeds` in its transformer's configuration",
}

AUDIO = "it makes sound, and none of its parts are put together here"
PROMPTS = "it takes no embeddings, and its text encoder is not put together here"
# Classes that are not put together here, and why.
UNBUILT: dict[str, str] = {
    "AceStepPipeline": f"{AUDIO}; guidance with momentum, as it has it, is refused",
    "StableAudio3Pipeline": AUDIO,
    "StableAudio3AudioToAudioPipeline": AUDIO,
    "StableAudio3InpaintPipeline": AUDIO,
    "LongCatAudioDiTPipeline": AUDIO,
    "BriaFiboPipeline": PROMPTS,
    "BriaFiboEditPipeline": PROMPTS,
    "DreamLitePipeline": PROMPTS,
    "DreamLiteMobilePipeline": PROMPTS,
    "OmniGenPipeline": PROMPTS,
    "VisualClozePipeline": PROMPTS,
    "VisualClozeGenerationPipeline": PROMPTS,
    "EasyAnimateControlPipeline": "its call fails in this version of diffusers, schedule or not",
    "RFD4ProteinaPipeline": "it makes proteins",
    "WanAnimatePipeline": f"its parts are not put together; {MULTISTEP}, as for WanPipeline",
    "ZImageOmniPipeline": "its encoder of pictures is not put together",
    "Kandinsky6SRPipeline": "its parts are not put together; a tile of a video is a run",
}
