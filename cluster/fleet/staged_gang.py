"""A gang with the text encoders and the VAE beside it, so that no stage waits idly.

While the gang denoises one video, the encoders have the text of the next and the frames of the one
before. Threads of the leader carry a video each from stage to stage, and wait for their turn at
both. The text encoders are in memory once, and not on every rank. Where a VAE decodes in tiles the
encoders are a gang themselves, of as many ranks, which share the tiles; else one process.
"""

from __future__ import annotations

from types import TracebackType

from cluster.fleet.batches import Batches
from cluster.fleet.gang import Gang

# Videos in flight at a leader: one at each stage, and one whose file is written and uploaded; of
# pictures that go into one forward, as many of each.
DEPTH = 4


class StagedGang:
    """What a leader renders with.

    Args:
        gang: its ranks denoise latents.
        encoders: of one rank, or of as many as the gang; each shares the GPU of a rank of the gang.
        batch: items that go into one forward, at most.

    Use it as a context manager, or call `close`. A process that died is started anew by the next
    task that needs it.
    """

    def __init__(self, gang: Gang, encoders: Gang, batch: int = 1) -> None:
        self.gang = gang
        self.encoders = encoders
        self.batches = Batches(batch)

    def __enter__(self) -> StagedGang:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def world_size(self) -> int:
        """Ranks that share each video."""
        return self.gang.world_size

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks, the gang's first; empty while they are down."""
        return self.gang.pids + self.encoders.pids

    def start(self) -> None:
        """Starts all processes at once, and waits until they are ready.

        Raises:
            GangStartError: a rank failed to start.
            NodeFaultError: its process could not be started.
        """
        try:
            self.encoders.launch()
            self.gang.start()
            self.encoders.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kills all processes and waits until they are gone."""
        self.gang.close()
        self.encoders.close()
