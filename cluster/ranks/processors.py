"""Qwen-Image-Edit's processor of texts and images, without that of videos, which needs torchvision.

torchvision has to be built for the very torch that is installed, and nothing else here needs it.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin


class TextsAndImages(Qwen2VLProcessor):
    """Qwen2VLProcessor for texts and images alone."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(source: str, revision: str | None) -> TextsAndImages:
    """The processor of a pipeline's files."""
    place = {"subfolder": "processor", "revision": revision}
    return TextsAndImages(
        Qwen2VLImageProcessorPil.from_pretrained(source, **place),
        AutoTokenizer.from_pretrained(source, **place),
    )
