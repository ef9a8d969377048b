"""Folders in save_pretrained layout: small random pipelines whole, texts and their encoders too.

The pipelines are those of `small_pipelines`; what they lack there to be called with a prompt
is supplied here, small and random as well, of transformers' own classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from cluster.models.model import Model
from tests.support import image_pipelines as images
from tests.support import newer_pipelines as newer
from tests.support import small_pipelines as small

WORDS = [
    "<pad>", "<bos>", "<eos>", "<unk>",
    "a", "red", "blue", "circle", "square", "on", "dark", "light", "background", "noise",
]  # fmt: skip
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}<eos>"


def tokenizer(before: int = 0) -> PreTrainedTokenizerFast:
    """One of a few words, with so many tokens before a text, whose end is marked."""
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(WORDS[:4])
    words.post_processor = TemplateProcessing(
        single=" ".join(["<bos>"] * before + ["$A", "<eos>"]),
        special_tokens=[("<bos>", 1), ("<eos>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=77,
        padding_side="right",
        chat_template="<bos> " * before + CHAT,
    )


def clip(build: Callable[..., Any] = CLIPTextModel, width: int = 16) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return small.seeded(build, config=config)


def t5(build: Callable[..., Any] = T5EncoderModel, config: Any = T5Config, words: int = 0) -> Any:
    sizes = config(
        vocab_size=words or len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=2,
    )
    return small.seeded(build, config=sizes)


def qwen(layers: int = 1) -> dict[str, Any]:
    """Sizes of a small Qwen."""
    return {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


SECTIONS = {"rope_type": "default", "type": "default", "mrope_section": [2, 1, 1]}


def qwen_vl() -> Any:
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    text = {**qwen(), "rope_scaling": SECTIONS}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return small.seeded(Qwen2_5_VLForConditionalGeneration, config=config)


def flux() -> dict[str, Any]:
    return {
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": tokenizer(),
    }


def qwen_image() -> dict[str, Any]:
    # The pipeline drops 34 tokens, which the template's words nearly are.
    return {"text_encoder": qwen_vl(), "tokenizer": tokenizer(34)}


def wan() -> dict[str, Any]:
    return {"text_encoder": t5(UMT5EncoderModel, UMT5Config), "tokenizer": tokenizer()}


def wan_with_unipc() -> dict[str, Any]:
    """As Wan's checkpoints have it."""
    unipc = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {**wan(), "scheduler": unipc}


def hunyuan_video() -> dict[str, Any]:
    from meancache.tiny import text

    llama, words = text.build_tokenizers()
    encoder, pooled = text.build_text_encoders(0)
    transformer = small.hunyuan_transformer(text_embed_dim=64, pooled_projection_dim=64)
    return {
        "text_encoder": encoder,
        "tokenizer": llama,
        "text_encoder_2": pooled,
        "tokenizer_2": words,
        "transformer": transformer,
    }


def hunyuan_video15() -> dict[str, Any]:
    config = Qwen2_5_VLTextConfig(**qwen(layers=3), rope_scaling=SECTIONS)
    glyphs = ByT5Tokenizer()
    return {
        "text_encoder": small.seeded(Qwen2_5_VLTextModel, config=config),
        "tokenizer": tokenizer(108),
        "text_encoder_2": t5(words=len(glyphs)),
        "tokenizer_2": glyphs,
    }


def sd3() -> dict[str, Any]:
    # Both CLIPs' features side by side are padded to those of T5.
    clips = {f"text_encoder{n}": clip(CLIPTextModelWithProjection, width=8) for n in ("", "_2")}
    tokenizers = {f"tokenizer{n}": tokenizer() for n in ("", "_2", "_3")}
    return {**clips, "text_encoder_3": t5(), **tokenizers}


def z_image() -> dict[str, Any]:
    model = small.seeded(Qwen3Model, config=Qwen3Config(**qwen(layers=2), head_dim=8))
    return {"text_encoder": model, "tokenizer": tokenizer()}


def klein() -> dict[str, Any]:
    config = Qwen3Config(**qwen(layers=28), head_dim=8)  # it reads the 27th
    model = small.seeded(Qwen3ForCausalLM, config=config)
    return {"text_encoder": model, "tokenizer": tokenizer()}


def ltx() -> dict[str, Any]:
    return {"text_encoder": t5(), "tokenizer": tokenizer()}


def qwen_image_edit() -> dict[str, Any]:
    # Of its template more tokens are dropped.
    words = images.with_image_tokens(tokenizer(64))
    encoder = images.qwen_vl(words, qwen(), SECTIONS)
    return {"text_encoder": encoder, "tokenizer": words, "processor": images.processor(words)}


Parts = tuple[Callable[[], DiffusionPipeline], Callable[[], dict[str, Any]]]

# name: (pipeline without texts, what it lacks)
FOLDERS: dict[str, Parts] = {
    "FLUX.1": (small.flux, flux),
    "Qwen-Image": (small.qwen_image, qwen_image),
    "Wan 2.1": (small.wan21, wan_with_unipc),
    "Wan 2.2": (small.wan22, wan),
    "HunyuanVideo": (small.hunyuan_video, hunyuan_video),
    "HunyuanVideo-1.5": (small.hunyuan_video15, hunyuan_video15),
    "SD3": (small.sd3, sd3),
    "Z-Image": (small.z_image, z_image),
    "LTX-Video": (small.ltx_video, ltx),
    "Chroma": (small.chroma, ltx),
    "FLUX.2 Klein": (images.klein, klein),
    "Wan VACE": (images.wan_vace, wan),
    "FLUX.2": (newer.flux2, newer.mistral),
    "CogView4": (newer.cogview4, newer.glm),
    "Kandinsky 5": (newer.kandinsky, newer.kandinsky_texts),
    "Mochi": (newer.mochi, ltx),
    "LTX-2": (newer.ltx2, newer.gemma),
    "Qwen-Image-2.1": (newer.qwen_image21, newer.nothing),
}

# What checkpoints call the processors that are ones of our own here.
PROCESSORS = {"TextsAndImages": "Qwen2VLProcessor", "TextsAndImages3": "Qwen3VLProcessor"}
# The same of those that draw from an image.
WITH_IMAGES: dict[str, Parts] = {
    "HunyuanVideo I2V": (small.hunyuan_video_i2v, images.hunyuan_video_i2v),
    "HunyuanVideo I2V, token replace": (
        small.hunyuan_video_token_replace,
        images.hunyuan_video_i2v,
    ),
    "HunyuanVideo-1.5 I2V": (small.hunyuan_video15_i2v, hunyuan_video15),
    "Wan 2.1 I2V": (images.wan21_i2v, wan_with_unipc),
    "Wan 2.2 I2V": (small.wan_i2v, wan),
    "LTX-Video I2V": (small.ltx_i2v, ltx),
    "FLUX.1 Kontext": (images.kontext, flux),
    "Qwen-Image-Edit": (images.qwen_edit, qwen_image_edit),
    "Qwen-Image-Edit-Plus": (images.qwen_edit_plus, qwen_image_edit),
}


def short_texts(model: Model) -> dict[str, int]:
    """Arguments that pad texts to 64 tokens, where the call says to how many; by default 512 and
    more, which is slow."""
    name = "max_sequence_length"
    return {name: 64} if name in model.kind.takes else {}


def save(name: str, folder: Path) -> Path:
    """Saves a pipeline of FOLDERS or WITH_IMAGES, whole, and returns the folder."""
    bare, texts = {**FOLDERS, **WITH_IMAGES}[name]
    pipeline = bare()
    pipeline.register_modules(**texts())
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    components = json.loads(index.read_text())
    for part, value in components.items():
        if isinstance(value, list) and value[1] in PROCESSORS:
            components[part] = ["transformers", PROCESSORS[value[1]]]
    index.write_text(json.dumps(components))
    return folder
