"""Delivers one item: gang -> frames -> mp4 -> store -> receipt.

The order is the promise: the video is in the store before its receipt, so a receipt implies its
mp4, and a leader killed anywhere in between leaves at worst an unreferenced file.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import manifest, video
from cluster.gang import MAX_ATTEMPTS, Gang, GangTaskError
from cluster.model import Model
from cluster.plan import WorkItem
from cluster.renderer import Renderer, Rendering
from cluster.store import MissingKey, Store
from meancache import Schedule


@dataclass(frozen=True)
class RenderRequest:
    """What every rank of a gang gets to render one item."""

    item: WorkItem
    schedule: Schedule | None


def render_item(renderer: Renderer, request: RenderRequest) -> Rendering:
    """The gang's task: one item's video."""
    item = request.item
    return renderer.render(item.prompt, item.seed, item.arguments, request.schedule)


@dataclass(frozen=True)
class Delivery:
    """What the fleet does with each item of a render job; a `fleet.Work`."""

    store: Store
    model: Model
    schedule: Schedule | None

    def __call__(self, gang: Gang, item: WorkItem) -> dict[str, Any]:
        """Renders and commits one item; a row that failed MAX_ATTEMPTS times is committed too.

        Returns:
            The row that counts, as its receipt holds it.

        Raises:
            GangStartError: the gang's ranks do not start; the item stays open.
            StoreError: the store failed; nothing is committed and the item stays open.
        """
        # When a leader dies, Ray hands out its whole block again: what is committed is paid for.
        with suppress(MissingKey):
            return manifest.read_receipt(self.store, item)
        try:
            rendering, attempts = gang.run_with_retries(
                render_item, RenderRequest(item, self.schedule)
            )
        except GangTaskError as error:  # ranks that do not start are no item's failure
            row = self._row(gang, item, MAX_ATTEMPTS, status=manifest.FAILED, error=str(error))
            return manifest.commit_receipt(self.store, row)
        started = time.perf_counter()
        data = video.encode(rendering.frames, self.model.fps)
        encoded = time.perf_counter()
        sha256 = hashlib.sha256(data).hexdigest()
        key = manifest.video_key(item.id, sha256)
        self.store.put_new(key, data)
        row = self._row(
            gang,
            item,
            attempts,
            status=manifest.OK,
            uri=self.store.uri(key),
            key=key,
            sha256=sha256,
            bytes=len(data),
            nfe=rendering.nfe,
            render_s=rendering.seconds,
            encode_s=encoded - started,
            upload_s=time.perf_counter() - encoded,
        )
        return manifest.commit_receipt(self.store, row)

    def _row(self, gang: Gang, item: WorkItem, attempts: int, **known: Any) -> dict[str, Any]:
        empty = dict.fromkeys(manifest.SCHEMA.names)
        return {
            **empty,
            "item_id": item.id,
            "prompt_id": item.prompt_id,
            "prompt": item.prompt,
            "model": self.model.id,
            "model_revision": self.model.revision,
            "schedule_id": None if self.schedule is None else self.schedule.id,
            "index": item.index,
            "seed": item.seed,
            "shard": item.shard,
            **{
                name: item.arguments[name]
                for name in ("num_frames", "width", "height", "num_inference_steps")
            },
            "world_size": gang.world_size,
            "attempts": attempts,
            "fps": self.model.fps,
            "metrics": {},
            "created_at": manifest.now(),
            **known,
        }
