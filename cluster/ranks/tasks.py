"""What a rank does, as its leader sees it: tasks of a gang, their requests and results.

Light on purpose: only ranks need torch and diffusers, which take seconds to import.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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

    The seconds of one that was in a batch are its share of the batch's, so that sums over items
    are the time that was spent.

    Attributes:
        latents: the call of the VAE that decodes them, packed; None on ranks other than 0.
        nfe: forwards of the transformers; guidance in two forwards counts as two. Those of a batch
            count in full for each of its items.
        loop_s: wall time of the denoising loop: from the transformer's first call to the
            scheduler's last step.
        gang_s: wall time since this rank was done with the one before, or of this one alone where
            it is the first: what the gang's time was spent on, waiting for work included.
        forward_s: the fastest forward that this rank has done of outputs of this size, in seconds
            of its device; 0 where it has done none.
        attention: name of the attention that the transformer used.
        swapped: whether other adapters were on the transformers before.
        place: in its batch, from 0.
        batch: how many went into each forward.
    """

    latents: bytes | None
    nfe: int
    loop_s: float
    gang_s: float
    forward_s: float = 0.0
    attention: str = ""
    swapped: bool = False
    place: int = 0
    batch: int = 1


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


def encode_for_batch(encoders: Renderer, item: WorkItem) -> tuple[bytes, str, float]:
    """A task of the encoders: an item's embeddings, what others must have in common with them to
    go into one forward, and the seconds that they took."""
    from cluster.ranks.batches import form_of

    texts, seconds = encode_prompt(encoders, item)
    return texts, form_of(texts), seconds


def denoise_item(renderer: Renderer, request: RenderRequest) -> Denoised:
    """A gang's task: denoises one item whose texts are given."""
    item = request.item
    swapped = use_adapters(renderer, item, request.store)
    denoised = renderer.denoise(item.prompt, item.seed, item.call, request.schedule, request.texts)
    return replace(denoised, swapped=swapped)


def denoise_batch(renderer: Renderer, requests: Sequence[RenderRequest]) -> list[Denoised]:
    """A gang's task: denoises items of the same call and schedule in one, with their texts given.

    Args:
        renderer: of this rank.
        requests: several; their texts are of one form.
    """
    from cluster.ranks.batches import joined, split

    first, count = requests[0], len(requests)
    swapped = use_adapters(renderer, first.item, first.store)
    all_of_it = renderer.denoise(
        [one.item.prompt for one in requests],
        [one.item.seed for one in requests],
        first.item.call,
        first.schedule,
        joined([one.texts for one in requests if one.texts is not None]),
    )
    latents = all_of_it.latents
    each = [None] * count if latents is None else split(latents, count)
    return [
        replace(
            all_of_it,
            latents=own,
            loop_s=all_of_it.loop_s / count,
            gang_s=all_of_it.gang_s / count,
            forward_s=all_of_it.forward_s / count,
            swapped=swapped and not place,
            place=place,
            batch=count,
        )
        for place, own in enumerate(each)
    ]


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
