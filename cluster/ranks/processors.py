"""Qwen's processors of texts and images, without that of videos, which needs torchvision.

torchvision has to be built for the very torch that is installed, and nothing else here needs it.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, Qwen2VLProcessor, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin


class TextsAndImages(Qwen2VLProcessor):
    """Qwen2VLProcessor for texts and images alone."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        _begin(self, image_processor, tokenizer, chat_template)


class TextsAndImages3(Qwen3VLProcessor):
    """Qwen3VLProcessor for texts and images alone."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        _begin(self, image_processor, tokenizer, chat_template)


def _begin(processor: Any, images: Any, tokenizer: Any, chat_template: Any) -> None:
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = tokenizer.convert_tokens_to_ids(
        [processor.image_token, processor.video_token]
    )
    ProcessorMixin.__init__(processor, images, tokenizer, chat_template=chat_template)


# By the class that a pipeline's index names.
PROCESSORS: dict[str, Any] = {
    "Qwen2VLProcessor": TextsAndImages,
    "Qwen2_5_VLProcessor": TextsAndImages,
    "Qwen3VLProcessor": TextsAndImages3,
}


def load_processor(kind: str, name: str, source: str, revision: str | None) -> Any:
    """The processor of a pipeline's files.

    Args:
        kind: one of PROCESSORS.
        name: of the component.
        source: of the pipeline.
        revision: of a Hugging Face id.
    """
    place = {"subfolder": name, "revision": revision}
    tokenizer = AutoTokenizer.from_pretrained(source, **place)
    images = Qwen2VLImageProcessorPil.from_pretrained(source, **place)
    return PROCESSORS[kind](images, tokenizer, chat_template=tokenizer.chat_template)
