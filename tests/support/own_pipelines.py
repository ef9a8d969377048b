"""Pipeline classes of diffusers on small parts of their own, by their class names.

Sizes, embeddings and noise are as in `small_pipelines`. A pipeline that takes no embeddings gets
them in place of its text encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.support.small_pipelines import (
    DYNAMIC,
    HUNYUAN,
    QWEN_GUIDED,
    WAN,
    Case,
    hunyuan_parts,
    image_vae,
    noise,
    picture,
    scheduler,
    seeded,
    wan_vae,
)

SIZE = {"height": 32, "width": 48}
TEXT = {"prompt_embeds": noise(1, 6, 16), "negative_prompt_embeds": noise(1, 6, 16, seed=8)}
MASKS = {
    "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long),
    "negative_prompt_attention_mask": torch.ones(1, 6, dtype=torch.long),
}
GUIDED = {**SIZE, **TEXT, "guidance_scale": 4.0}
QWEN_MASKS = {
    "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
    "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
}
SMALL_PICTURE = picture()
# Some take multiples of 32 only.
WIDE = {"height": 32, "width": 64}


def assembled(name: str, **parts: Any) -> Any:
    """A pipeline of the parts; what it also asks for is None."""
    cls = getattr(diffusers, name)
    expected, optional = cls._get_signature_keys(cls)
    return cls(**{**dict.fromkeys(set(expected) - set(optional)), **parts})


def made(name: str, **parts: Any) -> Callable[[], Any]:
    """Builds the pipeline of parts that functions build."""

    def make() -> Any:
        built = {key: part() if callable(part) else part for key, part in parts.items()}
        return assembled(name, **built)

    return make


def model(name: str, **config: Any) -> Callable[[], Any]:
    """Builds a model of diffusers with random weights."""
    return lambda: seeded(getattr(diffusers, name), **config)


def euler(**config: Any) -> Callable[[], Any]:
    return lambda: scheduler(**config)


def flux2_vae() -> Any:
    return seeded(
        diffusers.AutoencoderKLFlux2,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
    )


def qwen_vae(**changes: Any) -> Any:
    return seeded(
        diffusers.AutoencoderKLQwenImage,
        **{
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "latents_mean": [0.0] * 4,
            "latents_std": [1.0] * 4,
            **changes,
        },
    )


def coarse_vae(**changes: Any) -> Any:
    """Shrinks a picture by 64: the pipelines that edit make every picture a megapixel."""
    shape = {"base_dim": 2, "dim_mult": [1] * 7, "temperal_downsample": [False] * 6}
    return qwen_vae(**shape, **changes)


def small_qwen(name: str, **changes: Any) -> Callable[[], Any]:
    """A transformer of one block, as Qwen-Image has it."""
    config = {
        "in_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    }
    return model(name, **{**config, **changes})


def small_flux(name: str, **changes: Any) -> Callable[[], Any]:
    """A transformer of two kinds of blocks, one of each, as FLUX.1 has it."""
    return small_qwen(name, num_single_layers=1, **changes)


def small_wan(name: str, **changes: Any) -> Callable[[], Any]:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 1,
        "rope_max_seq_len": 32,
    }
    return model(name, **{**config, **changes})


def clip_vision() -> dict[str, Any]:
    """An image encoder of two layers and what prepares its pictures."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    size = {"height": 16, "width": 16}
    return {
        "image_encoder": seeded(CLIPVisionModel, config=config),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size),
    }


def sana_transformer(**changes: Any) -> Any:
    return seeded(
        diffusers.SanaTransformer2DModel,
        **{
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 8,
            **changes,
        },
    )


def dc_vae() -> Any:
    return seeded(
        diffusers.AutoencoderDC,
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


def sana_video(name: str) -> Callable[[], Any]:
    transformer = model(
        "SanaVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )
    return made(name, transformer=transformer, vae=wan_vae, scheduler=euler(shift=3.0))


def hidream() -> Any:
    transformer = seeded(
        diffusers.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    pipe = assembled(
        "HiDreamImagePipeline",
        transformer=transformer,
        vae=image_vae(4),
        scheduler=scheduler(shift=3.0),
    )
    pipe.default_sample_size = 8
    return pipe


HIDREAM = {
    "height": 64,
    "width": 64,
    "prompt_embeds_t5": noise(1, 6, 16),
    "negative_prompt_embeds_t5": noise(1, 6, 16, seed=8),
    "prompt_embeds_llama3": noise(2, 1, 6, 16),
    "negative_prompt_embeds_llama3": noise(2, 1, 6, 16, seed=8),
    "pooled_prompt_embeds": noise(1, 16),
    "negative_pooled_prompt_embeds": noise(1, 16, seed=8),
    "guidance_scale": 4.0,
}


def ideogram4() -> Any:
    def transformer(scale: float) -> Any:
        one = seeded(
            diffusers.Ideogram4Transformer2DModel,
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=16,
            mrope_section=(4, 2, 2),
        )
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.mul_(scale)
        return one

    pipe = assembled(
        "Ideogram4Pipeline",
        transformer=transformer(1.0),
        unconditional_transformer=transformer(1.1),
        vae=flux2_vae(),
        scheduler=scheduler(),
    )

    def encode_prompt(
        prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: Any
    ) -> tuple[torch.Tensor, ...]:
        ids = pipe._prepare_ids([4], grid_h, grid_w, max_sequence_length, device)
        text = torch.zeros(1, max_sequence_length + grid_h * grid_w, 16)
        text[:, max_sequence_length - 4 : max_sequence_length] = noise(1, 4, 16)
        return text, *ids

    pipe.encode_prompt = encode_prompt
    return pipe


def ltx2(name: str) -> Callable[[], Any]:
    def make() -> Any:
        transformer = seeded(
            diffusers.LTX2VideoTransformer3DModel,
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=2,
            caption_channels=16,
            rope_double_precision=False,
        )
        vae = seeded(
            diffusers.AutoencoderKLLTX2Video,
            latent_channels=4,
            block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatial",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=1,
            patch_size_t=1,
        )
        audio_vae = seeded(
            diffusers.AutoencoderKLLTX2Audio,
            base_channels=4,
            output_channels=2,
            ch_mult=(1,),
            num_res_blocks=1,
            in_channels=2,
            resolution=32,
            latent_channels=2,
            mel_bins=8,
        )
        connectors = seeded(
            diffusers.pipelines.ltx2.connectors.LTX2TextConnectors,
            caption_channels=16,
            text_proj_in_factor=1,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
        )
        return assembled(
            name,
            transformer=transformer,
            vae=vae,
            audio_vae=audio_vae,
            connectors=connectors,
            scheduler=scheduler(**DYNAMIC),
        )

    return make


LTX2 = {
    **WIDE,
    **TEXT,
    **MASKS,
    "num_frames": 5,
    "frame_rate": 25.0,
    "guidance_scale": 3.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 3.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
}


class NoChecker(torch.nn.Module):
    """Stands for Cosmos's guardrail, which is a package of its own."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True


def cosmos2(name: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformer = seeded(
            diffusers.CosmosTransformer3DModel,
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "mlp_ratio": 2,
                "text_embed_dim": 16,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "patch_size": (1, 2, 2),
                "concat_padding_mask": False,
                "extra_pos_embed_type": None,
                **changes,
            },
        )
        pipe = assembled(
            name,
            transformer=transformer,
            vae=wan_vae(),
            safety_checker=NoChecker(),
            scheduler=scheduler(use_karras_sigmas=True),
        )
        # Its own default repeats the last noise level, and such a grid is refused.
        pipe.scheduler.register_to_config(final_sigmas_type="zero")
        return pipe

    return make


def hunyuan_image() -> Any:
    transformer = seeded(
        diffusers.HunyuanImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
    )
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    return assembled(
        "HunyuanImagePipeline",
        transformer=transformer,
        scheduler=scheduler(shift=5.0),
        guider=guider,
        ocr_guider=guider,
    )


HUNYUAN_IMAGE = {
    "height": 128,  # 32 times its latents
    "width": 192,
    **TEXT,
    **QWEN_MASKS,
    "prompt_embeds_2": noise(1, 4, 16),
    "prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
    "negative_prompt_embeds_2": noise(1, 4, 16, seed=8),
    "negative_prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
}


def kandinsky5(name: str, video: bool, visual_cond: bool = False) -> Callable[[], Any]:
    def make() -> Any:
        transformer = seeded(
            diffusers.Kandinsky5Transformer3DModel,
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
            visual_cond=visual_cond,
        )
        vae = hunyuan_parts()["vae"] if video else image_vae(4)
        with torch.no_grad():  # so that what it says of a picture's variance is finite
            vae.quant_conv.weight.mul_(0.1)
        pipe = assembled(name, transformer=transformer, vae=vae, scheduler=scheduler(shift=5.0))
        pipe.resolutions = [(48, 32)]
        return pipe

    return make


KANDINSKY5 = {
    **SIZE,
    "prompt_embeds_qwen": noise(1, 6, 16),
    "prompt_embeds_clip": noise(1, 16),
    "prompt_cu_seqlens": torch.tensor([0, 6], dtype=torch.int32),
    "negative_prompt_embeds_qwen": noise(1, 6, 16, seed=8),
    "negative_prompt_embeds_clip": noise(1, 16, seed=8),
    "negative_prompt_cu_seqlens": torch.tensor([0, 6], dtype=torch.int32),
    "guidance_scale": 4.0,
}


def framepack() -> Any:
    transformer = seeded(
        diffusers.HunyuanVideoFramepackTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 4, 8),
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return assembled(
        "HunyuanVideoFramepackPipeline",
        **{**hunyuan_parts(), "transformer": transformer},
        image_encoder=seeded(SiglipVisionModel, config=vision),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )


def easy_animate(name: str, in_channels: int) -> Callable[[], Any]:
    transformer = model(
        "EasyAnimateTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        patch_size=2,
    )
    vae = model(
        "AutoencoderKLMagvit",
        in_channels=3,
        latent_channels=4,
        out_channels=3,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=(
            "SpatialDownBlock3D",
            "SpatialTemporalDownBlock3D",
            "SpatialTemporalDownBlock3D",
            "SpatialTemporalDownBlock3D",
        ),
        up_block_types=(
            "SpatialUpBlock3D",
            "SpatialTemporalUpBlock3D",
            "SpatialTemporalUpBlock3D",
            "SpatialTemporalUpBlock3D",
        ),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return made(name, transformer=transformer, vae=vae, scheduler=euler(shift=3.0))


def glm_image() -> Any:
    transformer = seeded(
        diffusers.GlmImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )
    return assembled(
        "GlmImagePipeline",
        transformer=transformer,
        vae=image_vae(4),
        scheduler=scheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    )


def qwen_edit_parts() -> dict[str, Any]:
    return {
        "transformer": small_qwen("QwenImageTransformer2DModel", out_channels=4)(),
        "vae": coarse_vae(),
        "scheduler": scheduler(**DYNAMIC),
    }


def qwen_layered() -> Any:
    # Eight channels: a picture of four is taken for latents of four.
    vae = coarse_vae(input_channels=4, z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    transformer = small_qwen(
        "QwenImageTransformer2DModel",
        in_channels=32,
        out_channels=8,
        use_additional_t_cond=True,
        use_layer3d_rope=True,
    )()
    return assembled(
        "QwenImageLayeredPipeline",
        vae=vae,
        transformer=transformer,
        # Only its dtype is looked at: the embeddings are given.
        text_encoder=clip_vision()["image_encoder"],
        scheduler=scheduler(**DYNAMIC),
    )


def coarse_image_vae() -> Any:
    """Shrinks a picture by 64, into 16 channels."""
    return seeded(
        diffusers.AutoencoderKL,
        block_out_channels=(4,) * 7,
        down_block_types=("DownEncoderBlock2D",) * 7,
        up_block_types=("UpDecoderBlock2D",) * 7,
        latent_channels=16,
        norm_num_groups=2,
        scaling_factor=0.36,
        shift_factor=0.1,
    )


class Processor:
    """Stands for what would prepare a picture for the text encoder."""

    image_processor = None


def longcat(name: str, vae: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        transformer = small_flux(
            "LongCatImageTransformer2DModel", in_channels=64, pooled_projection_dim=16
        )
        pipe = assembled(
            name,
            transformer=transformer(),
            vae=vae(),
            scheduler=scheduler(**DYNAMIC),
            text_processor=Processor(),
        )

        # Its own asks for a prompt beside the embeddings, and then refuses to take both.
        def encode_prompt(prompt: Any = None, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            ids = torch.zeros(6, 3)
            ids[:, 1] = ids[:, 2] = torch.arange(6)
            return noise(1, 6, 16, seed=8 if prompt in ("", [""]) else 7), ids

        pipe.encode_prompt = encode_prompt
        return pipe

    return make


PAIR = {**GUIDED, **MASKS}
SANA = {**PAIR, **WIDE, "negative_prompt": None, "use_resolution_binning": False}
OWN: dict[str, Case] = {
    "HiDreamImagePipeline": Case(hidream, HIDREAM),
    "Ideogram4Pipeline": Case(
        ideogram4,
        {**SIZE, "prompt": "a red circle", "max_sequence_length": 6, "guidance_scale": 4.0,
         "guidance_schedule": None},
        calls=2,
    ),
    "LTX2Pipeline": Case(ltx2("LTX2Pipeline"), LTX2),
    "LTX2ImageToVideoPipeline": Case(
        ltx2("LTX2ImageToVideoPipeline"), {**LTX2, "image": SMALL_PICTURE}
    ),
    "LTX2ConditionPipeline": Case(ltx2("LTX2ConditionPipeline"), LTX2),
    "Cosmos2TextToImagePipeline": Case(cosmos2("Cosmos2TextToImagePipeline"), GUIDED, calls=2),
    "Cosmos2VideoToWorldPipeline": Case(
        cosmos2("Cosmos2VideoToWorldPipeline", in_channels=5),
        {**GUIDED, "image": SMALL_PICTURE, "num_frames": 5},
        calls=2,
    ),
    "SanaPipeline": Case(
        made("SanaPipeline", transformer=sana_transformer, vae=dc_vae, scheduler=euler(shift=3.0)),
        SANA,
    ),
    "SanaPAGPipeline": Case(
        made(
            "SanaPAGPipeline",
            transformer=sana_transformer,
            vae=dc_vae,
            scheduler=euler(shift=3.0),
            pag_applied_layers=["transformer_blocks.0"],
        ),
        SANA,
    ),
    "SanaControlNetPipeline": Case(
        made(
            "SanaControlNetPipeline",
            transformer=lambda: sana_transformer(num_layers=2),
            controlnet=model(
                "SanaControlNetModel",
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_attention_heads=2,
                attention_head_dim=16,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=16,
                sample_size=8,
            ),
            vae=dc_vae,
            scheduler=euler(shift=3.0),
        ),
        {**SANA, "control_image": SMALL_PICTURE},
    ),
    "SanaVideoPipeline": Case(
        sana_video("SanaVideoPipeline"), {**SANA, "frames": 5}
    ),
    "SanaImageToVideoPipeline": Case(
        sana_video("SanaImageToVideoPipeline"),
        {**SANA, "frames": 5, "image": SMALL_PICTURE},
    ),
    "HunyuanImagePipeline": Case(hunyuan_image, HUNYUAN_IMAGE, calls=2),
    "HunyuanVideoFramepackPipeline": Case(
        framepack, {**HUNYUAN, "image": SMALL_PICTURE, "latent_window_size": 3}
    ),
    "Kandinsky5T2IPipeline": Case(
        kandinsky5("Kandinsky5T2IPipeline", video=False), KANDINSKY5, calls=2
    ),
    "Kandinsky5I2IPipeline": Case(
        kandinsky5("Kandinsky5I2IPipeline", video=False, visual_cond=True),
        {**KANDINSKY5, "image": SMALL_PICTURE},
        calls=2,
    ),
    "Kandinsky5T2VPipeline": Case(
        kandinsky5("Kandinsky5T2VPipeline", video=True, visual_cond=True),
        {**KANDINSKY5, "num_frames": 5},
        calls=2,
    ),
    "Kandinsky5I2VPipeline": Case(
        kandinsky5("Kandinsky5I2VPipeline", video=True, visual_cond=True),
        {**KANDINSKY5, "num_frames": 21, "image": SMALL_PICTURE},
        calls=2,
    ),
    "SkyReelsV2Pipeline": Case(
        made(
            "SkyReelsV2Pipeline",
            transformer=small_wan("SkyReelsV2Transformer3DModel"),
            vae=wan_vae,
            scheduler=euler(shift=3.0),
        ),
        WAN,
        calls=2,
    ),
    "SkyReelsV2ImageToVideoPipeline": Case(
        lambda: assembled(
            "SkyReelsV2ImageToVideoPipeline",
            transformer=small_wan("SkyReelsV2Transformer3DModel", in_channels=12, image_dim=16)(),
            vae=wan_vae(),
            scheduler=scheduler(shift=3.0),
            **clip_vision(),
        ),
        {**WAN, "image": SMALL_PICTURE},
        calls=2,
    ),
    "ChronoEditPipeline": Case(
        lambda: assembled(
            "ChronoEditPipeline",
            transformer=small_wan("ChronoEditTransformer3DModel", in_channels=12, image_dim=16)(),
            vae=wan_vae(),
            scheduler=scheduler(shift=3.0),
            **clip_vision(),
        ),
        {**GUIDED, "image": SMALL_PICTURE},
        calls=2,
    ),
    "BriaPipeline": Case(
        made(
            "BriaPipeline",
            transformer=small_flux("BriaTransformer2DModel"),
            vae=lambda: image_vae(4),
            scheduler=euler(**{**DYNAMIC, "shift_terminal": None}),
        ),
        GUIDED,
    ),
    "ErnieImagePipeline": Case(
        made(
            "ErnieImagePipeline",
            transformer=model(
                "ErnieImageTransformer2DModel",
                hidden_size=32,
                num_attention_heads=2,
                num_layers=1,
                ffn_hidden_size=32,
                in_channels=16,
                out_channels=16,
                patch_size=1,
                text_in_dim=16,
                rope_axes_dim=(4, 4, 8),
            ),
            vae=flux2_vae,
            scheduler=euler(shift=3.0),
        ),
        {
            **SIZE,
            "prompt_embeds": [noise(6, 16)],
            "negative_prompt_embeds": [noise(5, 16, seed=8)],
            "guidance_scale": 4.0,
        },
    ),
    "JoyImageEditPipeline": Case(
        made(
            "JoyImageEditPipeline",
            transformer=model(
                "JoyImageEditTransformer3DModel",
                in_channels=4,
                hidden_size=32,
                num_attention_heads=2,
                text_dim=16,
                num_layers=1,
                rope_dim_list=[4, 4, 8],
            ),
            vae=wan_vae,
            scheduler=euler(shift=3.0),
        ),
        {**GUIDED, **QWEN_MASKS, "max_sequence_length": 6},
        calls=2,
    ),
    "Krea2Pipeline": Case(
        made(
            "Krea2Pipeline",
            transformer=model(
                "Krea2Transformer2DModel",
                in_channels=16,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=32,
                timestep_embed_dim=8,
                text_hidden_dim=16,
                num_text_layers=3,
                text_num_attention_heads=2,
                text_num_key_value_heads=1,
                text_intermediate_size=16,
                num_layerwise_text_blocks=1,
                num_refiner_text_blocks=1,
                axes_dims_rope=(4, 2, 2),
            ),
            vae=qwen_vae,
            scheduler=euler(**DYNAMIC),
        ),
        {
            **SIZE,
            "prompt_embeds": noise(1, 6, 3, 16),
            "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.bool),
            "negative_prompt_embeds": noise(1, 6, 3, 16, seed=8),
            "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.bool),
            "guidance_scale": 3.0,
        },
        calls=2,
    ),
    "LuminaPipeline": Case(
        made(
            "LuminaPipeline",
            transformer=model(
                "LuminaNextDiT2DModel",
                sample_size=8,
                patch_size=2,
                in_channels=4,
                hidden_size=24,
                num_layers=1,
                num_attention_heads=3,
                num_kv_heads=1,
                multiple_of=16,
                cross_attention_dim=16,
            ),
            vae=lambda: image_vae(4),
            scheduler=euler(),
        ),
        PAIR,
    ),
    "NucleusMoEImagePipeline": Case(
        made(
            "NucleusMoEImagePipeline",
            transformer=model(
                "NucleusMoEImageTransformer2DModel",
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 4, 8),
                moe_enabled=False,
            ),
            vae=qwen_vae,
            scheduler=euler(**DYNAMIC),
        ),
        {**GUIDED, **QWEN_MASKS},
        calls=2,
    ),
    "PRXPipeline": Case(
        made(
            "PRXPipeline",
            transformer=model(
                "PRXTransformer2DModel",
                in_channels=4,
                patch_size=2,
                context_in_dim=16,
                hidden_size=16,
                mlp_ratio=2.0,
                num_heads=2,
                depth=1,
                axes_dim=[4, 4],
            ),
            vae=lambda: image_vae(4),
            scheduler=euler(shift=3.0),
        ),
        {
            **GUIDED,
            "prompt_attention_mask": torch.ones(1, 6, dtype=torch.bool),
            "negative_prompt_attention_mask": torch.ones(1, 6, dtype=torch.bool),
            "use_resolution_binning": False,
        },
    ),
    "PRXPixelPipeline": Case(
        made(
            "PRXPixelPipeline",
            transformer=model(
                "PRXTransformer2DModel",
                in_channels=3,
                patch_size=8,
                context_in_dim=16,
                hidden_size=16,
                mlp_ratio=2.0,
                num_heads=2,
                depth=1,
                axes_dim=[4, 4],
            ),
            scheduler=euler(shift=3.0),
        ),
        {
            **GUIDED,
            "prompt_attention_mask": torch.ones(1, 6, dtype=torch.bool),
            "negative_prompt_attention_mask": torch.ones(1, 6, dtype=torch.bool),
            "use_resolution_binning": False,
            "output_type": "pt",
        },
    ),
    "EasyAnimatePipeline": Case(
        easy_animate("EasyAnimatePipeline", 4), {**PAIR, "num_frames": 5}
    ),
    "EasyAnimateInpaintPipeline": Case(
        easy_animate("EasyAnimateInpaintPipeline", 9), {**PAIR, "num_frames": 5}
    ),
    "GlmImagePipeline": Case(
        glm_image,
        {
            **GUIDED,
            "prior_token_ids": torch.arange(6).unsqueeze(0),
        },
        calls=2,
    ),
    "MotifVideoPipeline": Case(
        made(
            "MotifVideoPipeline",
            transformer=model(
                "MotifVideoTransformer3DModel",
                in_channels=9,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=1,
                num_single_layers=1,
                patch_size=2,
                text_embed_dim=16,
                rope_axes_dim=(4, 4, 8),
            ),
            vae=wan_vae,
            scheduler=euler(**DYNAMIC),
            guider=lambda: diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
        ),
        {**SIZE, **TEXT, **MASKS, "num_frames": 5},
        calls=2,
    ),
    "LongCatImagePipeline": Case(
        longcat("LongCatImagePipeline", lambda: image_vae(16)),
        {**SIZE, "prompt": "a red circle", "enable_prompt_rewrite": False, "guidance_scale": 4.0},
        calls=2,
    ),
    "LongCatImageEditPipeline": Case(
        longcat("LongCatImageEditPipeline", coarse_image_vae),
        {"image": picture(), "prompt": "a red circle", "guidance_scale": 4.0},
        calls=2,
    ),
    "QwenImageEditPipeline": Case(
        lambda: assembled("QwenImageEditPipeline", **qwen_edit_parts()),
        {**QWEN_GUIDED, "image": picture(), "height": 256, "width": 384},
        calls=2,
    ),
    "QwenImageEditInpaintPipeline": Case(
        lambda: assembled("QwenImageEditInpaintPipeline", **qwen_edit_parts()),
        {**QWEN_GUIDED, "image": picture(), "mask_image": picture().convert("L"),
         "height": None, "width": None},
        calls=2,
    ),
    "QwenImageEditPlusPipeline": Case(
        lambda: assembled("QwenImageEditPlusPipeline", **qwen_edit_parts()),
        {**QWEN_GUIDED, "image": [picture()], "height": 256, "width": 384},
        calls=2,
    ),
    "QwenImageLayeredPipeline": Case(
        lambda: qwen_layered(),
        {
            **{key: value for key, value in QWEN_GUIDED.items() if key not in SIZE},
            "image": picture().convert("RGBA"),
            "prompt": "two layers",
            "layers": 2,
            "output_type": "pt",  # of latents it returns nothing
        },
        calls=2,
    ),
}  # fmt: skip
