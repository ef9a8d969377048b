"""A gang, and beside it a codec that reads prompts and decodes latents: no stage waits idly.

While the gang denoises one video, the codec has the text of the next and the frames of the one
before. Threads of the leader carry a video each from stage to stage, and wait for their turn at
both. The text encoders are in memory once, and not on every rank. Where a VAE decodes in tiles the
codec is a gang itself, of as many ranks, which share them; else it is one process.
"""

from __future__ import annotations

from types import TracebackType

from cluster.fleet.gang import Gang

# Videos in a leader's hands: one at each stage, and one whose file is written and uploaded.
DEPTH = 4


class StagedGang:
    """What a leader renders with.

    Args:
        gang: whose ranks draw latents.
        codec: of one rank, or of as many as the gang; on GPUs each shares that of the gang's rank.

    Use it as a context manager, or call `close`. A process that died is started anew by the next
    task that needs it.
    """

    def __init__(self, gang: Gang, codec: Gang) -> None:
        self.gang = gang
        self.codec = codec

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
        """Process ids of the gang's ranks and the codec's; empty while they are down."""
        return self.gang.pids + self.codec.pids

    def start(self) -> None:
        """Starts all processes at once, and waits until they are ready. Raises GangStartError."""
        try:
            self.codec.launch()
            self.gang.start()
            self.codec.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kills all processes and waits until they are gone."""
        self.gang.close()
        self.codec.close()
