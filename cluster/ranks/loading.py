"""Loads a pipeline on a rank's device."""

from __future__ import annotations

from collections.abc import Collection
from functools import singledispatch
from typing import Any

import diffusers
import torch

from cluster.models.grids import EULER
from cluster.models.model import Model
from cluster.ranks.processors import load_processor
from cluster.ranks.split_call import outline_transformers


@singledispatch
def load_pipeline(model: Model, device: torch.device, without: Collection[str] = ()) -> Any:
    """The pipeline on `device`, without progress bars, stepping as `model.scheduler` says.

    Args:
        model: what to load; models that lie in no file have an implementation of their own.
        device: where its weights go.
        without: beginnings of names of components that are not loaded, such as TEXT.
    """
    source, revision = model.place
    pipeline_class = getattr(diffusers, model.pipeline)
    components = pipeline_class.load_config(source, revision=revision)
    given: dict[str, Any] = {name: None for name in components if name.startswith(tuple(without))}
    if components.get("processor", [None, None])[1] == "Qwen2VLProcessor":
        given["processor"] = load_processor(source, revision)
    pipeline = pipeline_class.from_pretrained(
        source,
        revision=revision,
        torch_dtype=getattr(torch, model.dtype),
        use_safetensors=True,
        **given,
    )
    if "transformer" in without:
        outline_transformers(pipeline, source, revision)
    if type(pipeline.scheduler).__name__ != EULER:  # see `grids.euler_config`
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            dict(model.scheduler)
        )
    # A video of 720p does not decode in one piece; what is smaller than a tile still does.
    if hasattr(pipeline.vae, "enable_tiling"):
        pipeline.vae.enable_tiling(**model.kind.tiling)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
