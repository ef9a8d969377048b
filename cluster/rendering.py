"""What a rank draws, seen from outside of it: its leader, and who hands out the work.

Light on purpose: only ranks need torch and diffusers, which take seconds to import.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cluster import image, video
from cluster.memory import component_bytes, gpu_bytes
from cluster.memory_plan import Demand
from cluster.model import Model
from cluster.pipelines import TEXT
from cluster.plan import WorkItem
from meancache.schedule import Schedule

if TYPE_CHECKING:
    from cluster.codec import Codec
    from cluster.renderer import Renderer

# Two kinds of blocks, each of them compiled in minutes at most.
COMPILING_S = 1200.0


@dataclass(frozen=True)
class Drawing:
    """One video or picture before it is decoded, as a rank sees it.

    Attributes:
        latents: the call of the VAE that decodes them, packed; None on ranks other than 0.
        nfe: forwards of the transformers; guidance in two forwards counts as two.
        loop_s: wall time of the denoising loop: from the transformer's first call to the
            scheduler's last step.
        gang_s: wall time since this rank was done with the one before, or of this one alone where
            it is the first: what the gang's time was spent on, waiting for work included.
    """

    latents: bytes | None
    nfe: int
    loop_s: float
    gang_s: float


@dataclass(frozen=True)
class Rendering:
    """One video or picture as a rank sees it.

    Attributes:
        frames: (F, H, W, 3) uint8 on rank 0, F = 1 for a picture; None on the others.
        nfe: forwards of the transformers; guidance in two forwards counts as two.
        seconds: wall time of the pipeline's call.
        loop_s: wall time of its denoising loop alone: from the transformer's first call to the
            scheduler's last step.
    """

    frames: np.ndarray | None
    nfe: int
    seconds: float
    loop_s: float


@dataclass(frozen=True)
class RenderRequest:
    """What every rank of a gang gets to render one item.

    Attributes:
        item: what is to be rendered.
        schedule: which steps to compute; None computes all.
        texts: embeddings of its prompt, from `read_texts`; None where the ranks make them.
    """

    item: WorkItem
    schedule: Schedule | None
    texts: bytes | None = None


def render_item(renderer: Renderer, request: RenderRequest) -> Rendering:
    """A gang's task: one item from prompt to frames."""
    item = request.item
    return renderer.render(item.prompt, item.seed, item.arguments, request.schedule)


def read_texts(codec: Renderer, item: WorkItem) -> tuple[bytes, float]:
    """A codec's task: the embeddings of an item's prompt, and the seconds that they took."""
    started = time.perf_counter()
    return codec.read(item.prompt, item.arguments), time.perf_counter() - started


def draw_item(renderer: Renderer, request: RenderRequest) -> Drawing:
    """A gang's task: denoises one item whose texts are given."""
    item = request.item
    return renderer.draw(item.prompt, item.seed, item.arguments, request.schedule, request.texts)


def decode_item(codec: Renderer, drawn: tuple[bytes, WorkItem]) -> tuple[np.ndarray, float]:
    """A codec's task: the frames of an item that was drawn, and the seconds that they took."""
    latents, item = drawn
    started = time.perf_counter()
    return codec.decode(latents, item.arguments), time.perf_counter() - started


@dataclass(frozen=True)
class RankBuilder:
    """What a gang calls on each of its ranks.

    Attributes:
        model: what to load.
        without: components that are left to others.
        largest: arguments of the largest call that will be made, by which a GPU is refused that
            cannot hold it; None where they are not known, and nothing is refused.
        codec_size: ranks of the codec beside the gang; 0 where there is none.
        compiled: compile the blocks of the transformers.
    """

    model: Model
    without: tuple[str, ...] = ()
    largest: Mapping[str, Any] | None = None
    codec_size: int = 0
    compiled: bool = False
    needs: ClassVar = ("cluster.renderer",)

    def __call__(self, rank: int, world_size: int, init_method: str) -> Renderer:
        """The rank's renderer. Raises MemoryPlanError before anything is loaded."""
        from cluster.renderer import Renderer

        self.check(rank, world_size, gpu_bytes(rank))
        return Renderer(
            self.model, rank, world_size, init_method, self.without, compiled=self.compiled
        )

    @property
    def warm_up_s(self) -> float:
        """How much longer a rank's first video may take than those that follow."""
        return COMPILING_S if self.compiled else 0.0

    def check(self, rank: int, world_size: int, memory: int | None) -> None:
        """Looks whether a GPU can hold the largest call.

        Args:
            rank: which is to be built.
            world_size: of its gang.
            memory: of its GPU, in bytes; None on a CPU.

        Raises:
            MemoryPlanError: it cannot.
        """
        if memory is not None and self.largest is not None:
            _demand(self.model, self.largest, world_size, self.codec_size).offloads(memory, rank)


def rank_builder(model: Model, largest: Mapping[str, Any] | None = None) -> RankBuilder:
    """For ranks that hold the whole pipeline, and make calls no larger than `largest`."""
    return RankBuilder(model, largest=largest)


def denoiser_builder(
    model: Model,
    largest: Mapping[str, Any] | None = None,
    codec_size: int = 1,
    compiled: bool = False,
) -> RankBuilder:
    """For ranks of a studio's gang, beside a codec of that size: without text encoders."""
    return RankBuilder(model, TEXT, largest, codec_size, compiled)


@dataclass(frozen=True)
class CodecBuilder:
    """What a studio's codec calls on each of its ranks.

    Attributes:
        model: what to load, without the transformers.
        largest: as `RankBuilder` has it.
        gang_size: ranks of the gang that it stands beside.
    """

    model: Model
    largest: Mapping[str, Any] | None = None
    gang_size: int = 1
    needs: ClassVar = ("cluster.codec",)

    def __call__(self, rank: int, world_size: int, init_method: str) -> Codec:
        """The rank's part of the codec. Raises MemoryPlanError before anything is loaded."""
        from cluster.codec import Codec

        offloaded = self.offloads(rank, world_size, gpu_bytes(rank))
        return Codec(self.model, rank, world_size, init_method, offloaded)

    def offloads(self, rank: int, world_size: int, memory: int | None) -> bool:
        """Whether components go to the GPU only while they work, as there is no room for all.

        Args:
            rank: which is to be built.
            world_size: ranks of the codec.
            memory: of the rank's GPU, in bytes; None on a CPU.

        Raises:
            MemoryPlanError: the GPU cannot hold the largest call.
        """
        if memory is None or self.largest is None:
            return False
        return _demand(self.model, self.largest, self.gang_size, world_size).offloads(memory, rank)


def codec_builder(
    model: Model, largest: Mapping[str, Any] | None = None, gang_size: int = 1
) -> CodecBuilder:
    """For ranks of a studio's codec, beside a gang of that size."""
    return CodecBuilder(model, largest, gang_size)


def codec_size(model: Model, settings: Iterable[Mapping[str, Any]], gang_size: int) -> int:
    """How many ranks a studio's codec has: the gang's number where they share tiles, else one.

    Args:
        model: whose VAE decodes.
        settings: arguments of all calls to come; one that is decoded in tiles is enough.
        gang_size: ranks of the studio's gang.
    """
    return gang_size if any(map(model.decodes_in_tiles, settings)) else 1


def _demand(model: Model, largest: Mapping[str, Any], gang_size: int, codec_size: int) -> Demand:
    return Demand(model, component_bytes(model), largest, gang_size, codec_size)


def encoded(model: Model, frames: np.ndarray) -> bytes:
    """The file of what was drawn: an mp4, or a PNG of a model of images."""
    return image.encode(frames) if model.kind.is_image else video.encode(frames, model.fps)
