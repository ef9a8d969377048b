"""How ranks are built, seen from outside of them: what each loads, and whether its GPU can hold it.

Light on purpose: only ranks need torch and diffusers, which take seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cluster.models.compiling import ALWAYS, NEVER, ON_GPU
from cluster.models.kinds import TEXT
from cluster.models.memory_plan import Demand
from cluster.models.model import Model
from cluster.ranks.memory import component_bytes, gpu_bytes

if TYPE_CHECKING:
    from cluster.ranks.encoders import Encoders
    from cluster.ranks.renderer import Renderer

# What ranks of all kinds need; the same for all, so that they are forks of one process. The modules
# of `tiny` and HunyuanVideo are among them, as diffusers and transformers import them on demand.
IMPORTED = (
    "cluster.ranks.renderer",
    "cluster.ranks.encoders",
    "diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video",
)
# Two kinds of blocks, each of them compiled in minutes at most.
COMPILING_S = 1200.0


@dataclass(frozen=True)
class RankBuilder:
    """What a gang calls on each of its ranks.

    Attributes:
        model: what to load.
        without: components that are left to others.
        largest: arguments of the largest call that will be made, by which a GPU is refused that
            cannot hold it; None where they are not known, and nothing is refused.
        encoders_size: ranks of the encoders beside the gang; 0 where there is none.
        compiling: whether the blocks of the transformers are compiled: NEVER, ALWAYS, or ON_GPU.
        attention: as `Renderer` has it.
        batch: outputs that go into one forward, at most.
    """

    model: Model
    without: tuple[str, ...] = ()
    largest: Mapping[str, Any] | None = None
    encoders_size: int = 0
    compiling: str = NEVER
    attention: str | None = None
    batch: int = 1
    needs: ClassVar = IMPORTED

    def __call__(self, rank: int, world_size: int, init_method: str) -> Renderer:
        """The rank's renderer. Raises MemoryPlanError before anything is loaded."""
        from cluster.ranks.renderer import Renderer

        memory = gpu_bytes(rank)
        self.check(rank, world_size, memory)
        compiled = self.compiling == ALWAYS or (self.compiling == ON_GPU and memory is not None)
        return Renderer(
            self.model,
            rank,
            world_size,
            init_method,
            self.without,
            compiled=compiled,
            attention=self.attention,
        )

    @property
    def warm_up_s(self) -> float:
        """How much longer a rank's first video may take than those that follow."""
        return 0.0 if self.compiling == NEVER else COMPILING_S

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
            demand = _demand(self.model, self.largest, world_size, self.encoders_size, self.batch)
            demand.offloads(memory, rank)


def rank_builder(model: Model, largest: Mapping[str, Any] | None = None) -> RankBuilder:
    """For ranks that hold the whole pipeline, and make calls no larger than `largest`."""
    return RankBuilder(model, largest=largest)


def denoiser_builder(
    model: Model,
    largest: Mapping[str, Any] | None = None,
    encoders_size: int = 1,
    compiling: str = NEVER,
    attention: str | None = None,
    batch: int = 1,
) -> RankBuilder:
    """For ranks of a staged gang that denoise, beside encoders of that size."""
    return RankBuilder(model, TEXT, largest, encoders_size, compiling, attention, batch)


@dataclass(frozen=True)
class EncodersBuilder:
    """What the encoders of a staged gang call on each of their ranks.

    Attributes:
        model: what to load, without the transformers.
        largest: as `RankBuilder` has it.
        gang_size: ranks of the gang that they stand beside.
        batch: outputs that go into one forward of the gang, at most.
    """

    model: Model
    largest: Mapping[str, Any] | None = None
    gang_size: int = 1
    batch: int = 1
    needs: ClassVar = IMPORTED

    def __call__(self, rank: int, world_size: int, init_method: str) -> Encoders:
        """The rank's part of the encoders. Raises MemoryPlanError before anything is loaded."""
        from cluster.ranks.encoders import Encoders

        offloaded = self.offloads(rank, world_size, gpu_bytes(rank))
        return Encoders(self.model, rank, world_size, init_method, offloaded)

    def offloads(self, rank: int, world_size: int, memory: int | None) -> bool:
        """Whether components go to the GPU only while they work, as there is no room for all.

        Args:
            rank: which is to be built.
            world_size: ranks of the encoders.
            memory: of the rank's GPU, in bytes; None on a CPU.

        Raises:
            MemoryPlanError: the GPU cannot hold the largest call.
        """
        if memory is None or self.largest is None:
            return False
        demand = _demand(self.model, self.largest, self.gang_size, world_size, self.batch)
        return demand.offloads(memory, rank)


def encoders_builder(
    model: Model, largest: Mapping[str, Any] | None = None, gang_size: int = 1, batch: int = 1
) -> EncodersBuilder:
    """For ranks of a staged gang's encoders, beside a gang of that size."""
    return EncodersBuilder(model, largest, gang_size, batch)


def encoders_size(model: Model, settings: Iterable[Mapping[str, Any]], gang_size: int) -> int:
    """How many ranks the encoders have: the gang's number where they share tiles, else one.

    Args:
        model: whose VAE decodes.
        settings: arguments of all calls to come; one that is decoded in tiles is enough.
        gang_size: ranks of the gang.
    """
    return gang_size if any(map(model.decodes_in_tiles, settings)) else 1


def _demand(
    model: Model, largest: Mapping[str, Any], gang_size: int, encoders_size: int, batch: int
) -> Demand:
    return Demand(model, component_bytes(model), largest, gang_size, encoders_size, batch)
