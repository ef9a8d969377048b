"""Ranks with several small pipelines each: to start ranks takes longer than to draw with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cluster.models.model import Model
from cluster.ranks import Rendering, RenderRequest, render_item
from cluster.ranks.renderer import Renderer
from tests.support.ranks import latents


def build(
    models: Mapping[str, Model], rank: int, world_size: int, init_method: str
) -> dict[str, Renderer]:
    """All of the models on one rank."""
    return {name: Renderer(model, rank, world_size, init_method) for name, model in models.items()}


def drawn(
    renderers: Mapping[str, Renderer], payload: tuple[str, RenderRequest]
) -> tuple[torch.Tensor, Rendering]:
    """What one of them draws: its latents, float32, and its rendering."""
    name, request = payload
    return latents(renderers[name], request), render_item(renderers[name], request)
