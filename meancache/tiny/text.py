"""Tokenizers and text encoders of the embedded model: word-level, small, random and frozen.

Random networks keep words apart well enough for 144 captions; the transformer learns the rest.
"""

from __future__ import annotations

import math

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from meancache.tiny.captions import ALL, Caption

WIDTH = 64  # of both encoders
TOKENS = 10  # of a caption as the transformer sees it: nine words and the end of the turn
_BOS, _EOS, _PAD, _UNKNOWN = "<bos>", "<eos>", "<pad>", "<unk>"
_TURN = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_CLIP_LENGTH = 77  # tokens the pipeline pads the second prompt to


def _tokenizer(special: list[str], template: str, max_length: int) -> PreTrainedTokenizerFast:
    words = sorted({word for caption in ALL for word in caption.text.split()})
    vocabulary = {token: index for index, token in enumerate(special + words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in (_BOS, _EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        model_max_length=max_length,
        padding_side="right",
        truncation_side="right",
    )


def _prefix_tokens(tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the pipeline's prompt template before the prompt, without those put in front."""
    prefix = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    return len(tokenizer.backend_tokenizer.encode(prefix, add_special_tokens=False).ids)


def build_tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The Llama-side and the CLIP-side tokenizer, over the words of the captions."""
    special = [_PAD, _BOS, _EOS, _UNKNOWN, *_TURN]
    bare = _tokenizer(special, "$A", 512)
    # The pipeline crops a fixed number of tokens, which the real tokenizer's prefix has; this
    # one's prefix is shorter, so that begin-of-text tokens make up the difference.
    missing = DEFAULT_PROMPT_TEMPLATE["crop_start"] - _prefix_tokens(bare)
    llama = _tokenizer(special, " ".join([_BOS] * missing + ["$A"]), 512)
    clip = _tokenizer(special, f"{_BOS} $A {_EOS}", _CLIP_LENGTH)
    return llama, clip


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Unit-scale embeddings and variance-keeping matrices.

    The usual initial scale of 0.02 lets a pooled output of CLIP barely see the words.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        std = 1.0 if "embed" in name else 1.5 / math.sqrt(parameter.shape[1])
        if "position" in name:
            std = 0.3
        parameter.data.normal_(0.0, std, generator=generator)


def build_text_encoders(seed: int) -> tuple[LlamaModel, CLIPTextModel]:
    """Random, frozen encoders of width 64 for the tokenizers of `build_tokenizers`."""
    llama_tokenizer, clip_tokenizer = build_tokenizers()
    generator = torch.Generator().manual_seed(seed)
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=len(llama_tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            # The pipeline reads the hidden states after the first of these: it skips two layers.
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            bos_token_id=llama_tokenizer.bos_token_id,
            eos_token_id=llama_tokenizer.eos_token_id,
            pad_token_id=llama_tokenizer.pad_token_id,
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=_CLIP_LENGTH,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    for model in (llama, clip):
        _randomise(model, generator)
        model.requires_grad_(False).eval()
    return llama, clip


@torch.no_grad()
def embed(
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
    encoders: tuple[LlamaModel, CLIPTextModel],
    captions: tuple[Caption, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token embeddings (N, TOKENS, WIDTH) and pooled embeddings (N, WIDTH), as the pipeline's."""
    prompts = [caption.text for caption in captions]
    crop = DEFAULT_PROMPT_TEMPLATE["crop_start"]
    turns = [DEFAULT_PROMPT_TEMPLATE["template"].format(prompt) for prompt in prompts]
    inputs = tokenizers[0](turns, return_tensors="pt")
    hidden = encoders[0](
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        output_hidden_states=True,
    ).hidden_states[-3]
    pooled = encoders[1](tokenizers[1](prompts, return_tensors="pt").input_ids).pooler_output
    return hidden[:, crop:], pooled
