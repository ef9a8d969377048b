"""Small random pipelines that are newer than those of `small_pipelines`, and their texts."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GlmConfig,
    GlmModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.support import image_pipelines as images
from tests.support import small_pipelines as small
from tests.support.own_pipelines import assembled, kandinsky5
from tests.support.own_pipelines import ltx2 as bare_ltx2
from tests.support.pipeline_classes import mochi as bare_mochi

# A message whose content is a list of parts, as processors take it.
PARTS = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] }} {% endfor %}{% endfor %}<eos>"
)


def flux2() -> Any:
    parts = images.klein().components
    transformer = small.seeded(
        diffusers.Flux2Transformer2DModel,
        **{**parts["transformer"].config, "guidance_embeds": True},
    )
    return diffusers.Flux2Pipeline(**{**parts, "transformer": transformer})


def mistral() -> dict[str, Any]:
    """Of thirty layers, of which the pipeline reads three."""
    from tests.support.saved_pipelines import WORDS, tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    text = MistralConfig(
        vocab_size=len(WORDS), num_hidden_layers=30, num_key_value_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, **sizes,
    )  # fmt: skip
    looks = PixtralVisionConfig(num_hidden_layers=1, image_size=32, patch_size=16, **sizes)
    config = Mistral3Config(text_config=text, vision_config=looks, image_token_index=0)
    words = tokenizer()
    words.chat_template = PARTS
    model = small.seeded(Mistral3ForConditionalGeneration, config=config)
    return {"text_encoder": model, "tokenizer": words}


def cogview4() -> Any:
    """As its checkpoint has it: the shift follows the size, in a line."""
    pipe = small.cogview4()
    sized = {"use_dynamic_shifting": True, "base_shift": 0.25, "max_shift": 0.75}
    pipe.register_modules(scheduler=small.scheduler(time_shift_type="linear", **sized))
    return pipe


def glm() -> dict[str, Any]:
    from tests.support.saved_pipelines import qwen, tokenizer

    model = small.seeded(GlmModel, config=GlmConfig(**qwen(layers=2), head_dim=8))
    return {"text_encoder": model, "tokenizer": tokenizer()}


def kandinsky() -> Any:
    return kandinsky5("Kandinsky5T2VPipeline", video=True)()


def kandinsky_texts() -> dict[str, Any]:
    from tests.support.saved_pipelines import SECTIONS, clip, qwen, tokenizer

    # So many tokens are dropped; the words of the template are more.
    words = images.with_image_tokens(tokenizer(64))
    return {
        "text_encoder": images.qwen_vl(words, qwen(), SECTIONS),
        "tokenizer": images.processor(words),
        "text_encoder_2": clip(),
        "tokenizer_2": tokenizer(),
    }


def mochi() -> Any:
    vae = small.seeded(
        diffusers.AutoencoderKLMochi,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
        latents_mean=None,
        latents_std=None,
    )
    return assembled("MochiPipeline", **{**bare_mochi().components, "vae": vae})


def ltx2() -> Any:
    """Of texts of two layers, with a voice, and coarse enough to be drawn in no time."""
    parts = bare_ltx2("LTX2Pipeline")().components
    config = {
        **parts["vae"].config,
        **{"patch_size": 4, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
        **{"decoder_block_out_channels": (8, 8, 8), "decoder_layers_per_block": (1, 1, 1, 1)},
        **{"decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4},
        **{"upsample_residual": (False,) * 3, "upsample_factor": (1, 1, 1)},
    }
    vae = small.seeded(diffusers.AutoencoderKLLTX2Video, **config)
    connectors = small.seeded(
        LTX2TextConnectors, **{**parts["connectors"].config, "text_proj_in_factor": 2}
    )
    split = {**parts["transformer"].config, "rope_type": "split"}  # as its checkpoints have it
    transformer = small.seeded(diffusers.LTX2VideoTransformer3DModel, **split)
    vocoder = small.seeded(
        LTX2Vocoder,
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    given = {"vae": vae, "connectors": connectors, "vocoder": vocoder, "transformer": transformer}
    return assembled("LTX2Pipeline", **{**parts, **given})


def gemma() -> dict[str, Any]:
    from tests.support.saved_pipelines import qwen, tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    looks = {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14, **sizes}
    text = {**qwen(), "head_dim": 8}
    config = Gemma3Config(text_config=text, vision_config=looks, mm_tokens_per_image=4)
    model = small.seeded(Gemma3ForConditionalGeneration, config=config)
    return {"text_encoder": model, "tokenizer": tokenizer()}


def qwen_image21() -> Any:
    from tests.support.saved_pipelines import qwen, tokenizer

    words = images.with_image_tokens(tokenizer())
    words.chat_template = PARTS
    start, _, image, video = words.convert_tokens_to_ids(images.QWEN_TOKENS)
    looks = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": 16, "deepstack_visual_indexes": [],
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**qwen(), "vocab_size": len(words), "head_dim": 8, "rope_scaling": rope},
        vision_config=looks,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
    )
    transformer = small.seeded(
        diffusers.QwenImage21Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = small.seeded(
        diffusers.AutoencoderKLQwenImage21,
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False, False, False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        in_channels=4,
        out_channels=4,
        scale_factor_temporal=1,
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=small.scheduler(**small.DYNAMIC),
        vae=vae,
        text_encoder=small.seeded(Qwen3VLForConditionalGeneration, config=config),
        processor=images.processor_3(words),
        transformer=transformer,
    )


def nothing() -> dict[str, Any]:
    return {}
