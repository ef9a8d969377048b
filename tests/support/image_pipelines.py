"""Small random pipelines that draw from an image, and the texts and encoders that they lack."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    WanImageToVideoPipeline,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import (
    DEFAULT_PROMPT_TEMPLATE,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from cluster.media.picture import Picture, examined
from tests.support import small_pipelines as small

_TURNS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]
_SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", *_TURNS]
QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_WORDS = ["a", "red", "blue", "circle", "square", "on", "dark", "light", "background", "noise"]


def picture(width: int = 120, height: int = 80, seed: int = 0) -> bytes:
    """A PNG of coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(data, "PNG")
    return data.getvalue()


def given(data: bytes) -> Picture:
    """A picture as a leader hands it to ranks."""
    return replace(examined(None, data), data=data)


def vision(size: int, patch: int) -> Any:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=patch,
    )
    return small.seeded(CLIPVisionModel, config=config)


def wan21_i2v() -> DiffusionPipeline:
    """With an encoder of the image, as Wan 2.1's."""
    return WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=small.wan_vae(),
        scheduler=small.scheduler(shift=3.0),
        transformer=small.wan_transformer(in_channels=12, image_dim=16, added_kv_proj_dim=24),
        image_processor=CLIPImageProcessor(size=28, crop_size=28),
        image_encoder=vision(28, 14),
    )


def wan_vace(num_layers: int = 1) -> DiffusionPipeline:
    transformer = small.seeded(
        WanVACETransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=num_layers,
        rope_max_seq_len=32,
        vace_layers=[0],
        vace_in_channels=8 + 64,
    )
    return WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=small.wan_vae(),
        scheduler=small.scheduler(shift=3.0),
        transformer=transformer,
    )


def klein() -> DiffusionPipeline:
    transformer = small.seeded(
        Flux2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = small.seeded(
        AutoencoderKLFlux2,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=256,
    )
    return Flux2KleinPipeline(
        scheduler=small.scheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


def kontext() -> DiffusionPipeline:
    return FluxKontextPipeline(**small.flux().components)


def _edit(build: Any) -> DiffusionPipeline:
    parts = small.qwen_image().components
    return build(**{**parts, "processor": None})


def qwen_edit() -> DiffusionPipeline:
    return _edit(QwenImageEditPipeline)


def qwen_edit_plus() -> DiffusionPipeline:
    return _edit(QwenImageEditPlusPipeline)


def with_image_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS})
    return tokenizer


def processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    from cluster.ranks.processors import Qwen2VLImageProcessorPil, TextsAndImages

    # As few patches as they allow: the pipeline gives the encoder a megapixel.
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
    return TextsAndImages(Qwen2VLImageProcessorPil(size=pixels), tokenizer)


def processor_3(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Of Qwen3-VL."""
    from cluster.ranks.processors import Qwen2VLImageProcessorPil, TextsAndImages3

    images = Qwen2VLImageProcessorPil(patch_size=16)
    return TextsAndImages3(images, tokenizer, chat_template=tokenizer.chat_template)


def qwen_vl(tokenizer: PreTrainedTokenizerFast, sizes: dict[str, Any], rope: Any) -> Any:
    looks = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    vision_start, _, image, _ = tokenizer.convert_tokens_to_ids(QWEN_TOKENS)
    config = Qwen2_5_VLConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "rope_scaling": rope},
        vision_config=looks,
        image_token_id=image,
        vision_start_token_id=vision_start,
    )
    return small.seeded(Qwen2_5_VLForConditionalGeneration, config=config)


def hunyuan_tokenizer() -> PreTrainedTokenizerFast:
    """Whose template has as many tokens as the pipeline crops, and the image where it looks."""
    words = {word: n for n, word in enumerate([*_SPECIAL, *_WORDS])}

    def built(filling: int) -> Tokenizer:
        tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
        tokenizer.normalizer = Replace("Describe", "a " * filling + "Describe")
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.add_special_tokens(_SPECIAL)
        tokenizer.post_processor = TemplateProcessing(
            single="<bos> <bos> $A", special_tokens=[("<bos>", 1)]
        )
        return tokenizer

    template = DEFAULT_PROMPT_TEMPLATE
    before = template["template"].split("{}")[0]
    missing = template["crop_start"] - len(built(0).encode(before).ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=built(missing),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
        padding_side="right",
    )


def llava() -> Any:
    text = LlamaConfig(
        vocab_size=len(_SPECIAL) + len(_WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision(336, 14).config,
        text_config=text,
        image_token_index=_SPECIAL.index("<image>"),
        pad_token_id=0,
    )
    return small.seeded(LlavaForConditionalGeneration, config=config)


def hunyuan_video_i2v() -> dict[str, Any]:
    from tests.support.saved_pipelines import clip, tokenizer

    return {
        "text_encoder": llava(),
        "tokenizer": hunyuan_tokenizer(),
        "text_encoder_2": clip(),
        "tokenizer_2": tokenizer(),
        "image_processor": CLIPImageProcessor(size=336, crop_size=336),
    }
