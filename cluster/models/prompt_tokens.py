"""How many tokens of a prompt a model reads: what is beyond its limit changes nothing.

Counts with the tokenizer of the encoder that describes the picture, from its tokenizer.json alone,
so that a driver needs neither torch nor the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.models.files import find_files
from cluster.models.model import Model, ModelError

BATCH = 1000


@dataclass(frozen=True)
class Reading:
    """Which encoder of a pipeline describes the picture.

    Attributes:
        tokenizer: the folder of its tokenizer.
        reserved: of its limit, tokens that are not the prompt's: an end, or a template before it.
        limit: where it is no argument of the call.
    """

    tokenizer: str = "tokenizer"
    reserved: int = 0
    limit: int | None = None


# By the class name of the diffusers pipeline. Templates that are cropped, as HunyuanVideo's and
# Qwen-Image's, take nothing of the limit.
READINGS = {
    "HunyuanVideoPipeline": Reading(),
    "HunyuanVideo15Pipeline": Reading(limit=1000),
    "WanPipeline": Reading(reserved=1),
    "LTXPipeline": Reading(reserved=1),
    "FluxPipeline": Reading("tokenizer_2", reserved=1),
    "ChromaPipeline": Reading(reserved=1),
    "WanVACEPipeline": Reading(reserved=1),
    "QwenImagePipeline": Reading(),
    "ZImagePipeline": Reading(reserved=3),
    "StableDiffusion3Pipeline": Reading("tokenizer_3", reserved=1),
}


def limit_of(model: Model, arguments: Mapping[str, Any]) -> int | None:
    """The most tokens of a prompt that the model reads, or None where it is not known."""
    reading = READINGS.get(model.pipeline)
    if reading is None:
        return None
    limit = reading.limit or arguments.get("max_sequence_length")
    return None if limit is None else limit - reading.reserved


def count_tokens(model: Model, prompts: Iterable[str]) -> Iterator[int] | None:
    """The tokens of each prompt, without those of a template; None where they cannot be counted."""
    reading = READINGS.get(model.pipeline)
    tokenizer = None if reading is None else _tokenizer(model, reading.tokenizer)
    return None if tokenizer is None else _counts(tokenizer, prompts)


def _counts(tokenizer: Any, prompts: Iterable[str]) -> Iterator[int]:
    prompts = iter(prompts)
    while batch := list(islice(prompts, BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield len(encoding)


def _tokenizer(model: Model, name: str) -> Any:
    """The tokenizer in a folder of the model's; None where it has no file that can be read."""
    from tokenizers import Tokenizer

    try:
        files = find_files(model.id, model.revision, Path(model.source))
        content = json.dumps(files.config(f"{name}/tokenizer.json"), ensure_ascii=False)
        tokenizer = Tokenizer.from_str(content)
    except ModelError:
        return None
    except Exception as error:  # what the library raises has no class of its own
        raise ModelError(
            f"model {model.id}: {name}/tokenizer.json cannot be read ({type(error).__name__})"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
