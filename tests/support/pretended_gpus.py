"""Ranks of this machine that are built as if they saw a GPU of a given size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.ranks import EncodersBuilder, RankBuilder


@dataclass(frozen=True)
class OnGpus(RankBuilder):
    """Decides as on a GPU, and then loads on what there is.

    Attributes:
        memory: of each GPU, in bytes.
        starts: a folder where each rank that begins leaves a file.
    """

    memory: int = 0
    starts: Path = Path()

    def check(self, rank: int, world_size: int, memory: int | None) -> None:
        (self.starts / f"{rank}-{len(list(self.starts.iterdir()))}").touch()
        super().check(rank, world_size, self.memory)


@dataclass(frozen=True)
class EncodersOnGpus(EncodersBuilder):
    """The same of the encoders.

    Attributes:
        memory: of each GPU, in bytes.
    """

    memory: int = 0

    def offloads(self, rank: int, world_size: int, memory: int | None) -> bool:
        return super().offloads(rank, world_size, self.memory)
