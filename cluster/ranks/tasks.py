"""What a rank does, as its leader sees it: tasks of a gang, their requests and results.

Light on purpose: only ranks need torch and diffusers, which take seconds to import.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cluster.models.adapter_names import LORA
from cluster.models.model import Model
from cluster.store import Store
from cluster.work.adapters import fetched
from cluster.work.plan import WorkItem
from meancache.schedule import Schedule

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer


@dataclass(frozen=True)
class Denoised:
    """One video or picture before it is decoded, as a rank sees it.

    Attributes:
        latents: the call of the VAE that decodes them, packed; None on ranks other than 0.
        nfe: forwards of the transformers; guidance in two forwards counts as two.
        loop_s: wall time of the denoising loop: from the transformer's first call to the
            scheduler's last step.
        gang_s: wall time since this rank was done with the one before, or of this one alone where
            it is the first: what the gang's time was spent on, waiting for work included.
        forward_s: the fastest forward that this rank has done of outputs of this size, in seconds
            of its device; 0 where it has done none.
        attention: name of the attention that the transformer used.
        swapped: whether other adapters were on the transformers before.
    """

    latents: bytes | None
    nfe: int
    loop_s: float
    gang_s: float
    forward_s: float = 0.0
    attention: str = ""
    swapped: bool = False


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
        texts: embeddings of its prompt, from `encode_prompt`; None where the ranks make them.
        store: the root of its job, which keeps the adapters that it names.
    """

    item: WorkItem
    schedule: Schedule | None
    texts: bytes | None = None
    store: Store | None = None


def render_item(renderer: Renderer, request: RenderRequest) -> Rendering:
    """A gang's task: one item from prompt to frames."""
    item = request.item
    return renderer.render(item.prompt, item.seed, item.call, request.schedule)


def encode_prompt(encoders: Renderer, item: WorkItem) -> tuple[bytes, float]:
    """A task of the encoders: an item's embeddings, and the seconds that they took."""
    started = time.perf_counter()
    return encoders.encode_prompt(item.prompt, item.call), time.perf_counter() - started


def denoise_item(renderer: Renderer, request: RenderRequest) -> Denoised:
    """A gang's task: denoises one item whose texts are given."""
    item = request.item
    swapped = use_adapters(renderer, item, request.store)
    denoised = renderer.denoise(item.prompt, item.seed, item.call, request.schedule, request.texts)
    return replace(denoised, swapped=swapped)


def use_adapters(renderer: Renderer, item: WorkItem, store: Store | None) -> bool:
    """Puts an item's adapters on the transformers; whether there were others before.

    Raises:
        ValueError: one does not fit them.
        StoreError: one cannot be read.
    """
    wanted = item.arguments.get(LORA) or ()

    def read(sha256: str) -> bytes:
        assert store is not None
        return fetched(store, sha256)

    return renderer.adapters.use(wanted, read)


def decode_item(encoders: Renderer, denoised: tuple[bytes, WorkItem]) -> tuple[np.ndarray, float]:
    """A task of the encoders: the frames of denoised latents, and the seconds that they took."""
    latents, item = denoised
    started = time.perf_counter()
    return encoders.decode(latents, item.arguments), time.perf_counter() - started


def encoded(model: Model, frames: np.ndarray) -> bytes:
    """The file of rendered frames: an mp4, or a PNG of a model of images."""
    from cluster.media import image, video  # with PyAV, which takes a while to import

    return image.encode(frames) if model.kind.is_image else video.encode(frames, model.fps)
