"""Delivers one item: gang -> frames -> mp4 -> store -> receipt.

The order is the promise: the video is in the store before its receipt, so a receipt implies its
mp4, and a leader killed anywhere in between leaves at worst an unreferenced file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster import attempts, audit, manifest
from cluster.gang import MAX_ATTEMPTS, Gang, GangTaskError, TryAgainError
from cluster.manifest import Manifest
from cluster.model import Model
from cluster.plan import WorkItem
from cluster.rendering import Rendering, encoded
from cluster.store import MissingKey
from meancache import Schedule

if TYPE_CHECKING:
    from cluster.renderer import Renderer

# Of a shard's receipts, how many tell a new gang how long a video takes.
PACE_SAMPLE = 10


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
    """What the fleet does with each item of a render job; a `fleet.Work`.

    Attributes:
        manifest: where items are committed.
        model: what renders them.
        schedule: which steps to compute; None for all.
        audit_share: of the items, how many are rendered in full too, to measure the others by.
    """

    manifest: Manifest
    model: Model
    schedule: Schedule | None
    audit_share: float = 0.0

    def __call__(self, gang: Gang, item: WorkItem) -> dict[str, Any]:
        """Renders and commits one item; one that failed MAX_ATTEMPTS times is committed too.

        Returns:
            The row that counts, as its receipt holds it.

        Raises:
            TryAgainError: this attempt failed, and is counted.
            GangStartError: the gang's ranks do not start; the item stays open.
            StoreError: the store failed; nothing is committed and the item stays open.
        """
        # Another driver, or a leader that died a moment too late, may have committed it.
        with suppress(MissingKey):
            return self.manifest.receipt(item)
        failures = attempts.failures(self.manifest, item)
        if len(failures) >= MAX_ATTEMPTS:
            return self._commit(
                gang, item, len(failures), status=manifest.FAILED, error=failures[-1]
            )
        try:
            return self._deliver(gang, item, len(failures) + 1)
        except GangTaskError as error:
            attempts.record_failure(self.manifest, item, str(error))
            raise TryAgainError(str(error)) from error

    def lost(self, item: WorkItem, how: str) -> None:
        """Counts the attempt of a leader that died with the item; a `fleet.Lost`."""
        attempts.record_failure(self.manifest, item, how)

    def _deliver(self, gang: Gang, item: WorkItem, attempt: int) -> dict[str, Any]:
        """One attempt. Raises GangTaskError where it fails, perhaps by the item's own fault."""
        if not gang.pace.known:
            self._learn_pace(gang, item)
        size = self._size(item, self.schedule)
        gang.start()  # a deadline is for the item alone
        started = time.perf_counter()
        # Longer every time: what is slow for a reason should not be killed three times.
        deadline_s = gang.pace.deadline_s(size) * 2 ** (attempt - 1)
        rendering = gang.run(render_item, RenderRequest(item, self.schedule), deadline_s)
        gang.pace.observe(size, time.perf_counter() - started)
        rendered = time.perf_counter()
        data = encoded(self.model, rendering.frames)
        written = time.perf_counter()
        sha256 = hashlib.sha256(data).hexdigest()
        key = manifest.video_key(item.id, sha256, "png" if self.model.kind.is_image else "mp4")
        store = self.manifest.store
        store.put_new(key, data)
        uploaded = time.perf_counter()
        return self._commit(
            gang,
            item,
            attempt,
            status=manifest.OK,
            uri=store.uri(key),
            key=key,
            sha256=sha256,
            bytes=len(data),
            nfe=rendering.nfe,
            render_s=rendering.seconds,
            encode_s=written - rendered,
            upload_s=uploaded - written,
            metrics=self._audited(gang, item, rendering.frames, attempt),
        )

    def _audited(
        self, gang: Gang, item: WorkItem, frames: np.ndarray, attempt: int
    ) -> dict[str, float]:
        """An audited item's fidelity to its full run.

        In first attempts alone: a full run that fails costs an attempt, but never the row.
        """
        if self.schedule is None or attempt > 1 or not audit.is_chosen(item.id, self.audit_share):
            return {}
        size = self._size(item, None)
        started = time.perf_counter()
        full = gang.run(render_item, RenderRequest(item, None), gang.pace.deadline_s(size))
        gang.pace.observe(size, time.perf_counter() - started)
        return audit.fidelity(frames, full.frames)

    def _learn_pace(self, gang: Gang, item: WorkItem) -> None:
        """A new gang's memory: what others have delivered of the item's shard."""
        store = self.manifest.store
        folder = self.manifest.receipt_key(item.shard, "").rpartition("/")[0]
        for key, _ in zip(store.list(f"{folder}/"), range(PACE_SAMPLE), strict=False):
            row = json.loads(store.get(key))
            if row["status"] == manifest.OK and row["world_size"] == gang.world_size:
                gang.pace.observe(_size(row, row["nfe"]), row["render_s"])

    def _size(self, item: WorkItem, schedule: Schedule | None) -> float:
        steps = item.arguments["num_inference_steps"]
        computed = steps if schedule is None else schedule.nfe
        return _size(self._shape(item), computed * self.model.calls(item.arguments))

    def _shape(self, item: WorkItem) -> dict[str, int]:
        shape = self.model.shape(item.arguments)
        return dict(zip(("num_frames", "height", "width"), shape, strict=True))

    def _commit(self, gang: Gang, item: WorkItem, attempts_: int, **known: Any) -> dict[str, Any]:
        empty = dict.fromkeys(manifest.SCHEMA.names)
        row = {
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
            **self._shape(item),
            "num_inference_steps": item.arguments["num_inference_steps"],
            "world_size": gang.world_size,
            "attempts": attempts_,
            "fps": self.model.fps,
            "metrics": {},
            "created_at": manifest.now(),
            **known,
        }
        return self.manifest.commit(row)


def _size(of: Mapping[str, Any], forwards: int) -> float:
    """What a video's time grows with: the pixels of all its forwards."""
    return float(of["num_frames"] * of["height"] * of["width"] * forwards)
