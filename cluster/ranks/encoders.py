"""One rank of a gang's encoders: its text encoders and VAE, a pipeline without its transformers.

Rank 0 alone encodes prompts: text encoders are larger than all else here, and are loaded once. A
VAE that decodes in tiles is on every rank, and they share its work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.models.kinds import DENOISERS, TEXT
from cluster.models.model import Model
from cluster.ranks.renderer import Renderer


class Encoders(Renderer):
    """Encodes prompts and decodes latents.

    Every rank makes the same calls, and rank 0 has what they return.

    Args:
        model: what to load.
        rank: 0 .. world_size - 1.
        world_size: more than 1 only where `Model.tile` says that tiles can be shared.
        init_method: rendezvous of the ranks for torch.distributed; unused for one rank.
        offloaded: as a renderer's.
    """

    def __init__(
        self, model: Model, rank: int, world_size: int, init_method: str, offloaded: bool = False
    ) -> None:
        assert world_size == 1 or model.tile is not None  # see `builders.encoders_size`
        without = DENOISERS if rank == 0 else (*DENOISERS, *TEXT)
        super().__init__(model, rank, world_size, init_method, without, offloaded)

    def encode_prompt(self, prompt: str, arguments: Mapping[str, Any]) -> bytes:
        """As a renderer's; no bytes on ranks other than 0, which have no text encoder."""
        return super().encode_prompt(prompt, arguments) if self.rank == 0 else b""
