"""Whether a job fits the memory of its GPUs, known before a weight is loaded.

Arithmetic on sizes alone: it asks no GPU and imports no torch. Weights are exact, activations are
estimates: the cost model's, and none for a transformer that it does not know, where what passes may
still be too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from cluster.models.cost_model import GIB, XDIT
from cluster.models.kinds import DENOISERS, TEXT
from cluster.models.model import Model
from meancache.errors import InputError

# A process's CUDA context, the workspaces of its libraries, and what its allocator cannot use.
PROCESS = GIB
# Velocities that the hook holds at once, in float32: a fitted step is a sum of three.
VELOCITIES = 3
# Numbers alive for each pixel of a tile at the worst moment of its decoding: HunyuanVideo's, as
# measured on an H100 at 640x480x65, 960x544x65 and 1280x720x129, the copies of the video left out.
ALIVE_A_PIXEL = 1665
# (frames, pixels along an axis) of the piece that a VAE decodes at once where its model names none,
# and frames of that which is decoded a latent frame at a time, with what it remembers of others.
USUAL_TILE = (16, 256)
# The whole video, while it is put together of tiles; likewise.
COPIES = 1.1
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}

Parts = Mapping[str, float]
"""What a GPU holds at its fullest, by name, in bytes."""


class MemoryPlanError(InputError):
    """A GPU cannot hold what a job asks of it; the message says what is missing and what helps."""


@dataclass(frozen=True)
class Demand:
    """What a job asks of the GPUs of a gang.

    Attributes:
        model: what is loaded.
        sizes: bytes of each of its components, of `memory.component_bytes`.
        arguments: of the largest call.
        gang_size: ranks that share a video.
        encoders_size: ranks of the encoders (text encoders and VAE), which work beside the first
            of the gang's; 0 where every rank does all.
        batch: outputs that go into one forward; they are decoded one by one.
    """

    model: Model
    sizes: Mapping[str, int]
    arguments: Mapping[str, Any]
    gang_size: int
    encoders_size: int
    batch: int = 1

    def offloads(self, memory: float, rank: int) -> bool:
        """Whether components of the encoders have to leave the GPU while they do nothing.

        A rank and the encoders' on the same GPU come to one answer without asking each other.

        Args:
            memory: of the rank's GPU, in bytes.
            rank: of the gang, or of the encoders.

        Raises:
            MemoryPlanError: the GPU cannot hold the job in either way.
        """
        if _total(self.parts(rank)) <= memory:
            return False
        if _total(self.parts(rank, offloaded=True)) > memory:
            raise MemoryPlanError(self._refusal(memory, rank))
        return True

    def parts(self, rank: int, offloaded: bool = False) -> Parts:
        """What the rank's GPU holds at its fullest.

        Args:
            rank: of the gang.
            offloaded: of the encoders' components, only the one that works is there.
        """
        denoising, decoding = self._denoising(), self._decoding()
        if not self.encoders_size:  # one after the other
            working = max((denoising, decoding), key=_total)
            return {**self.sizes, **working, "process": PROCESS}
        mine = {**self._weights_without(TEXT), **denoising, "process": PROCESS}
        if rank >= self.encoders_size:
            return mine
        others = DENOISERS if rank == 0 else (*DENOISERS, *TEXT)  # rank 0 encodes
        works = [
            {name: size, **(decoding if name == "vae" else {})}
            for name, size in self._weights_without(others).items()
        ]
        # They have one thing to do at a time, and the gang denoises meanwhile.
        there = [max(works, key=_total)] if offloaded else works
        beside = {f"encoders' {name}": size for work in there for name, size in work.items()}
        return {**mine, **beside, "encoders' process": PROCESS}

    def _weights_without(self, names: tuple[str, ...]) -> dict[str, float]:
        return {name: size for name, size in self.sizes.items() if not name.startswith(names)}

    def _denoising(self) -> Parts:
        transformer = self.model.transformer
        if transformer is None:
            return {}
        tokens = self.model.tokens(self.arguments)
        # The cost model counts in bfloat16.
        wider = WIDTHS[self.model.dtype] / WIDTHS["bfloat16"]
        branches = self.model.calls(self.arguments)
        ring = self.model.degrees(self.gang_size)[1] > 1
        alive = wider * transformer.activation_bytes(tokens, self.gang_size, ring)
        velocities = 4.0 * VELOCITIES * branches * transformer.velocity * tokens
        return {"activations": self.batch * alive, "velocities": self.batch * velocities}

    def _decoding(self) -> Parts:
        frames, height, width = shape = self.model.shape(self.arguments)
        most_frames, most_pixels = self.model.tile or USUAL_TILE
        if self.model.kind.by_frames:
            most_frames = USUAL_TILE[0]
        # A tile has a frame before its first, which its VAE looks back to.
        tile = (min(frames, most_frames + 1), min(height, most_pixels), min(width, most_pixels))
        alive = ALIVE_A_PIXEL * prod(tile) + COPIES * 3 * prod(shape)
        return {"decoding": float(WIDTHS[self.model.dtype] * alive)}

    def _refusal(self, memory: float, rank: int) -> str:
        parts = self.parts(rank, offloaded=True)
        named = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
        return (
            f"{self.model.id} at {self._shape()} needs {_gib(_total(parts))} GiB on the GPU of "
            f"rank {rank}, which has {_gib(memory)}: {_gib(_total(parts) - memory)} are missing "
            f"({named}; every rank holds all weights of the transformer, and ranks share the "
            f"activations). {self._remedy(memory, rank)}"
        )

    def _shape(self) -> str:
        frames, height, width = self.model.shape(self.arguments)
        return f"{width}x{height}" + ("" if self.model.kind.is_image else f"x{frames}")

    def _remedy(self, memory: float, rank: int) -> str:
        """What to change, of what can help."""
        ways = []
        for size in range(self.gang_size + 1, max(XDIT) + 1):
            if _total(replace(self, gang_size=size).parts(rank, offloaded=True)) > memory:
                continue
            if self.model.takes_gang(self.arguments, size):
                ways.append(f"--gang-size {size}")
                break
        if self.batch > 1 and _total(replace(self, batch=1).parts(rank, offloaded=True)) <= memory:
            ways.append("a smaller --batch")
        if _total(self._smallest().parts(rank, offloaded=True)) <= memory:
            ways.append("a smaller video or picture")
        if not ways:
            ways.append("GPUs of more memory: no shape and no gang size would fit these")
        return f"Use {' or '.join(ways)}"

    def _smallest(self) -> Demand:
        """The same of one token."""
        pixels = self.model.patch[1]
        least = {**self.arguments, "height": pixels, "width": pixels}
        return replace(self, arguments=least | ({"num_frames": 1} if "num_frames" in least else {}))


def _total(parts: Parts) -> float:
    return sum(parts.values())


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
