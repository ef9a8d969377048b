"""Which gangs a job asks for: how many, how large, and what their ranks hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.fleet.errors import FleetError
from cluster.fleet.gang import BuildRank, Gang
from cluster.fleet.staged_gang import DEPTH, StagedGang

# Beyond what fills any GPU; a leader has a thread for each item of DEPTH batches.
MOST_BATCH = 64


@dataclass(frozen=True)
class Gangs:
    """The gangs of a job.

    Attributes:
        build_rank: called on each rank of a new gang.
        size: ranks in a gang.
        least: how many gangs to begin with; None for all that there is room for.
        most: how many gangs to grow to while items wait; None likewise.
        build_encoders: builds the ranks of the encoders beside each gang, see `StagedGang`; None
            for gangs alone.
        encoders_size: ranks of the encoders.
        batch: items that go into one forward, at most.
        wait_s: how long to wait for room on the cluster while no gang works; None for ever.
        on_gpus: a GPU for each rank, or none; None for GPUs where the cluster has, or starts, any.
    """

    build_rank: BuildRank
    size: int
    least: int | None = None
    most: int | None = None
    build_encoders: BuildRank | None = None
    encoders_size: int = 1
    batch: int = 1
    wait_s: float | None = None
    on_gpus: bool | None = None

    @property
    def depth(self) -> int:
        """Items in flight at a leader."""
        return 1 if self.build_encoders is None else DEPTH * self.batch

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the modules that are imported once for all ranks of a node."""
        builders = [one for one in (self.build_rank, self.build_encoders) if one is not None]
        names = [name for one in builders for name in getattr(one, "needs", ())]
        return tuple(dict.fromkeys(names))

    def gang(self) -> Gang | StagedGang:
        """What a leader works with, not started."""
        gang = Gang(self.build_rank, self.size)
        if self.build_encoders is None:
            return gang
        return StagedGang(gang, Gang(self.build_encoders, self.encoders_size), self.batch)


def parse_count(text: str) -> tuple[int, int]:
    """Reads how many gangs: 'A' or 'A:B', as (least, most). Raises FleetError."""
    match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise FleetError(f"gangs {text!r} must be A or A:B with 1 <= A <= B, such as 4 or 2:8")
    return least, most
