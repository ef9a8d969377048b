"""Calls a pipeline for an item, or for several items that go into one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cluster.media.picture import opened
from cluster.models.model import Model
from cluster.work.pictures import IMAGE

NEGATIVE = "negative_prompt"


def call_pipeline(
    pipeline: Any,
    model: Model,
    prompt: str | Sequence[str],
    seed: int | Sequence[int],
    arguments: Mapping[str, Any],
    output_type: str,
) -> Any:
    """What a pipeline returns: latents or frames, for several prompts of a batch of them.

    Args:
        pipeline: of the model.
        model: which it is.
        prompt: the text, or several.
        seed: of its noise, or one for each, made on the CPU so that every rank and every kind of
            machine starts from the same noise, whatever is in the batch beside.
        arguments: of the call, the same for all.
        output_type: 'latent' or 'np'.
    """
    call = dict(arguments)
    if isinstance(prompt, str):
        generator: Any = _noise(seed)
    else:
        assert isinstance(seed, Sequence)
        prompt, generator = list(prompt), [_noise(one) for one in seed]
        if call.get(NEGATIVE) is not None:
            call[NEGATIVE] = [call[NEGATIVE]] * len(prompt)
    if IMAGE in call:
        cut = None if model.image_size else (call["width"], call["height"])
        call[IMAGE] = opened(call[IMAGE], cut)
    if not model.kind.sized:
        del call["height"], call["width"]
    call.update(model.kind.derived(arguments))
    if model.kind.guider:
        scale = call.pop("guidance_scale")
        if pipeline.guider.guidance_scale != scale:
            pipeline.guider = pipeline.guider.new(guidance_scale=scale, enabled=scale != 1)
    return pipeline(
        prompt=prompt, generator=generator, output_type=output_type, return_dict=False, **call
    )[0]


def _noise(seed: Any) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
