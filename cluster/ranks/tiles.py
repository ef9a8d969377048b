"""A VAE's tiles, dealt over ranks: each decodes its own, and rank 0 blends them all.

diffusers decodes large latents in overlapping tiles, one after the other, and blends their edges.
Here its own `decode` runs on every rank, unmodified and with the same latents, and only what a call
of its decoder does is another: the tiles are dealt in turn, and those of others come to rank 0 at
the moment its VAE asks for them. So rank 0 holds no more of them than decoding alone, and adds up
the same numbers in the same order.

A decoder is called once a tile. That of Wan's and Qwen-Image's VAEs is called once a latent frame,
with features of the frames before, which the VAE forgets before each tile: there all frames of a
tile are one rank's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any

import torch
import torch.distributed

from cluster.ranks.split_call import replaced

# A method of the VAEs whose decoder remembers features from one frame of a tile to the next.
_FORGET = "clear_cache"


@contextmanager
def dealt(vae: Any, rank: int, world_size: int) -> Iterator[None]:
    """Within it, one call of the VAE's `decode` is shared by all ranks, which all must make it.

    On rank 0 the call returns what it does alone, on the others a tensor without elements.

    Args:
        vae: an autoencoder of diffusers; the same weights and tile sizes on every rank.
        rank: 0 .. world_size - 1, as torch.distributed's default group has it.
        world_size: ranks of that group.
    """
    share = _Share(vae.decoder.forward, rank, world_size, by_frames=hasattr(vae, _FORGET))
    with ExitStack() as stack:
        stack.enter_context(replaced(vae.decoder, "forward", share))
        if share.by_frames:
            stack.enter_context(replaced(vae, _FORGET, share.before_a_tile(getattr(vae, _FORGET))))
        yield
    share.wait()


class _Share:
    """Stands in for the decoder's `forward` on one rank.

    Args:
        decode: the decoder's own.
        rank: this one.
        world_size: ranks that take turns, rank 0 first: it decodes its tile while the others do.
        by_frames: the decoder is called once a frame of a tile, else once a tile.
    """

    def __init__(
        self, decode: Callable[..., torch.Tensor], rank: int, world_size: int, by_frames: bool
    ) -> None:
        self.by_frames = by_frames
        self._decode = decode
        self._rank = rank
        self._turns = cycle(range(world_size))
        self._owner: int | None = None  # of the tile in progress
        self._sent: list[tuple[Any, torch.Tensor]] = []

    def __call__(self, tile: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        """One tile, or one frame of it.

        Args:
            tile: (B, C, h, w) or (B, C, f, h, w) latents.
            given: what else the VAE tells its decoder.
            named: likewise.

        Returns:
            (B, 3, H, W) or (B, 3, F, H, W) on rank 0, nothing of as many axes on the others: they
            blend nothing.
        """
        owner = next(self._turns) if self._owner is None else self._owner
        if self.by_frames:
            self._owner = owner
        if self._rank == 0:
            return _received(owner, tile) if owner else self._decode(tile, *given, **named)
        if owner == self._rank:
            decoded = self._decode(tile, *given, **named).contiguous()
            # Its size goes ahead of it, which only decoding tells for sure.
            self._send(torch.tensor(decoded.shape, device=decoded.device))
            self._send(decoded)
        return tile.new_empty(*tile.shape[:2], *[0] * (tile.ndim - 2))

    def before_a_tile(self, forget: Callable[[], None]) -> Callable[[], None]:
        """What the VAE calls before each tile and after the last one, with its next turn."""

        def forgotten() -> None:
            self._owner = None
            forget()

        return forgotten

    def wait(self) -> None:
        """Returns when rank 0 has everything."""
        for work, tensor in self._sent:
            work.wait()  # of NCCL, the stream's turn alone
            if tensor.is_cuda:
                torch.cuda.current_stream(tensor.device).synchronize()

    def _send(self, tensor: torch.Tensor) -> None:
        # Rank 0 takes it later; until then this rank decodes on, and keeps what it has sent.
        self._sent.append((torch.distributed.isend(tensor, dst=0), tensor))


def _received(owner: int, tile: torch.Tensor) -> torch.Tensor:
    """A tile that another rank has decoded, in the dtype and on the device of its latents."""
    shape = torch.empty(tile.ndim, dtype=torch.int64, device=tile.device)
    torch.distributed.recv(shape, src=owner)
    decoded = tile.new_empty(*shape.tolist())
    torch.distributed.recv(decoded, src=owner)
    return decoded
