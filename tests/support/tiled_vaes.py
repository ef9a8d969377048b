"""Ranks with small VAEs whose tiles are small too."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from cluster.ranks import Rendering, RenderRequest, decode_item, render_item
from cluster.ranks import sequence_parallel as xdit
from cluster.ranks.tiles import dealt
from tests.support import small_pipelines as small

if TYPE_CHECKING:
    from cluster.ranks.encoders import Encoders
    from cluster.ranks.renderer import Renderer
    from cluster.work.plan import WorkItem

# Tiles of 32 pixels, or 64, are latents of 4 along an axis or, in the last two, of 2.
HUNYUAN = {
    **{"tile_sample_min_height": 32, "tile_sample_stride_height": 24},
    **{"tile_sample_min_width": 32, "tile_sample_stride_width": 24},
    **{"tile_sample_min_num_frames": 8, "tile_sample_stride_num_frames": 4},
}
HUNYUAN_15 = {
    **{"tile_sample_min_height": 32, "tile_latent_min_height": 2},
    **{"tile_sample_min_width": 32, "tile_latent_min_width": 2},
    "tile_overlap_factor": 0.5,
}
WAN = {
    **{"tile_sample_min_height": 32, "tile_sample_stride_height": 24},
    **{"tile_sample_min_width": 32, "tile_sample_stride_width": 24},
}
LTX = {
    **{"tile_sample_min_height": 64, "tile_sample_stride_height": 32},
    **{"tile_sample_min_width": 64, "tile_sample_stride_width": 32},
}


def vaes() -> dict[str, Any]:
    """By name, with the same random weights in every process."""
    made = {
        "HunyuanVideo": small.hunyuan_parts()["vae"],
        "HunyuanVideo-1.5": small.hunyuan15_parts()["vae"],
        "FLUX.1": small.image_vae(4),
        "LTX-Video": small.ltx_parts()["vae"],
        "Wan": small.wan_vae(),
        "Qwen-Image": small.qwen_image_vae(),
    }
    sizes = {
        **{"HunyuanVideo": HUNYUAN, "HunyuanVideo-1.5": HUNYUAN_15, "LTX-Video": LTX},
        **{"Wan": WAN, "Qwen-Image": WAN},
    }
    for name, vae in made.items():
        vae.enable_tiling(**sizes.get(name, {}))
    return made


@dataclass
class Rank:
    """What the ranks of a test decode with."""

    number: int
    world_size: int
    vaes: Mapping[str, Any]


@dataclass(frozen=True)
class Decoded:
    """What came of it.

    Attributes:
        shared: (B, 3, H, W) or (B, 3, F, H, W).
        alone: the same by the same VAE, afterwards, in one process.
        tiles: that each rank has decoded of `shared`, by rank; frames of them where the decoder is
            called once a frame.
    """

    shared: torch.Tensor
    alone: torch.Tensor
    tiles: list[int]


class Builder:
    """Called on each rank."""

    needs: ClassVar = ("tests.support.tiled_vaes",)

    def __call__(self, rank: int, world_size: int, init_method: str) -> Rank:
        torch.set_num_threads(1)
        if world_size > 1:
            xdit.initialize(rank, world_size, init_method)
        return Rank(rank, world_size, vaes())


@torch.no_grad()
def decode(rank: Rank, asked: tuple[str, tuple[int, ...], torch.dtype]) -> Decoded:
    """Decodes noise of a shape with the VAE of a name in a dtype, together and alone."""
    name, shape, dtype = asked
    vae = rank.vaes[name].to(dtype)
    latents = small.noise(*shape).to(dtype)
    with _counted(vae) as tiles, dealt(vae, rank.number, rank.world_size):
        shared = vae.decode(latents).sample
    return Decoded(shared, vae.decode(latents).sample, _of_all(len(tiles), rank.world_size))


def render(renderer: Renderer, request: RenderRequest) -> tuple[Rendering, list[int]]:
    """What a gang draws of a request, and the tiles that each rank has decoded of it, by rank."""
    with _counted(renderer.pipeline.vae) as tiles:
        rendering = render_item(renderer, request)
    return rendering, _of_all(len(tiles), renderer.world_size)


@contextmanager
def _counted(vae: Any) -> Iterator[list[int]]:
    """Grows by one for each tile that this rank decodes; those from elsewhere pass by the layers
    of the decoder."""
    tiles: list[int] = []
    watching = vae.decoder.conv_in.register_forward_pre_hook(lambda *_: tiles.append(1))
    try:
        yield tiles
    finally:
        watching.remove()


def components(encoders: Encoders, payload: object) -> list[set[str]]:
    """The components with weights of each rank, by rank."""
    there = {
        name
        for name, component in encoders.pipeline.components.items()
        if isinstance(component, torch.nn.Module)
    }
    return _of_all(there, encoders.world_size)


def decode_and_die_on_rank_1(encoders: Encoders, denoised: tuple[bytes, WorkItem]) -> object:
    """Rank 1 is killed in its first tile, as by the kernel when memory runs out."""
    if encoders.rank == 1:

        def die(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        encoders.pipeline.vae.decoder.conv_in.register_forward_pre_hook(die)
    return decode_item(encoders, denoised)


def _of_all(value: Any, world_size: int) -> list[Any]:
    """The ranks' values, by rank."""
    values = [value] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values
