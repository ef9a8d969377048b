"""Ranks with several small pipelines each: to start ranks takes longer than to draw with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from cluster.models.model import Model
from cluster.ranks import RenderRequest, denoise_item
from cluster.ranks.renderer import Renderer
from cluster.ranks.split_call import unpack


@dataclass(frozen=True)
class Drawn:
    """What a gang draws, as one of its ranks sees it.

    Attributes:
        latents: what its VAE was given.
        frames: (F, H, W, 3) uint8 on rank 0.
        nfe: forwards of the transformers.
    """

    latents: torch.Tensor
    frames: np.ndarray
    nfe: int


def build(
    models: Mapping[str, Model], rank: int, world_size: int, init_method: str
) -> Callable[[str], Renderer]:
    """Finds the rank's pipeline of a name, which is loaded when it is asked for."""

    @cache
    def find(name: str) -> Renderer:
        return Renderer(models[name], rank, world_size, init_method)

    return find


def drawn(find: Callable[[str], Renderer], payload: tuple[str, RenderRequest]) -> Drawn:
    """A gang's task: what one of its pipelines draws."""
    name, request = payload
    return draw(find(name), request)


def draw(renderer: Renderer, request: RenderRequest) -> Drawn:
    """What a rank draws; only on rank 0 are there frames."""
    denoised = denoise_item(renderer, request)
    latents = renderer.broadcast(denoised.latents)
    frames = renderer.decode(latents, request.item.arguments)  # by all, where they share tiles
    return Drawn(unpack(latents, torch.device("cpu"))[0][0], frames, denoised.nfe)


def check_alike(shared: Drawn, alone: Drawn) -> None:
    """A gang draws what one rank draws, but adds up attention in another order."""
    rounding = 4e-6 * float(alone.latents.abs().max())
    torch.testing.assert_close(shared.latents, alone.latents, atol=rounding, rtol=1e-5)
    assert shared.nfe == alone.nfe
    # A value may lie on the edge between two.
    assert np.abs(shared.frames.astype(int) - alone.frames.astype(int)).max() <= 1
