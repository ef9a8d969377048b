"""Loads a pipeline on a rank's device."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import singledispatch
from pathlib import Path
from typing import Any

import diffusers
import torch

from cluster.models.grids import EULER
from cluster.models.model import Model
from cluster.ranks.processors import PROCESSORS, load_processor
from cluster.ranks.split_call import outline_transformers


def read_ahead(folder: Path, without: Collection[str]) -> list[Path]:
    """Asks the kernel for the weights in a folder, all at once: it reads while others load.

    Components are loaded one after the other, each file by page faults; a disk is faster than that.

    Args:
        folder: of a pipeline; nothing happens where it is none.
        without: beginnings of names of components that are not loaded.

    Returns:
        The files that were asked for.
    """
    found = [
        path
        for path in sorted(folder.glob("*/*.safetensors"))
        if not path.parent.name.startswith(tuple(without))
    ]
    for path in found:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return found


@singledispatch
def load_pipeline(model: Model, device: torch.device, without: Collection[str] = ()) -> Any:
    """The pipeline on `device`, without progress bars, stepping as `model.scheduler` says.

    Args:
        model: what to load; models that lie in no file have an implementation of their own.
        device: where its weights go.
        without: beginnings of names of components that are not loaded, such as TEXT.
    """
    source, revision = model.place
    read_ahead(Path(source), without)
    pipeline_class = getattr(diffusers, model.pipeline)
    components = pipeline_class.load_config(source, revision=revision)
    given: dict[str, Any] = {name: None for name in components if name.startswith(tuple(without))}
    for name, value in components.items():
        kind = value[1] if isinstance(value, list) and len(value) == 2 else None
        if kind in PROCESSORS and name not in given:
            given[name] = load_processor(kind, name, source, revision)
    pipeline = pipeline_class.from_pretrained(
        source,
        revision=revision,
        dtype=getattr(torch, model.dtype),
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
