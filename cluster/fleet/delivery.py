"""Delivers one item: prompt -> texts -> latents -> frames -> mp4 -> store -> receipt.

The order is the promise: the video is in the store before its receipt, so a receipt implies its
mp4, and a leader killed anywhere in between leaves at worst an unreferenced file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.fleet import logs
from cluster.fleet.gang import MAX_ATTEMPTS, GangTaskError, TryAgainError
from cluster.fleet.staged_gang import StagedGang
from cluster.models.model import Model
from cluster.ranks import (
    Denoised,
    RenderRequest,
    decode_item,
    denoise_item,
    encode_prompt,
    encoded,
)
from cluster.results import attempts, audit, manifest
from cluster.results.manifest import Manifest
from cluster.store import MissingKey
from cluster.work.plan import WorkItem
from meancache import Schedule

# Of a shard's receipts, how many tell a new gang how long a video takes.
PACE_SAMPLE = 10


Committed = Callable[[Mapping[str, Any], int], None]
"""Told of a row that this process has committed, and of its store's `retries`. Must pickle."""


def _nobody(row: Mapping[str, Any], store_retries: int) -> None:
    """Is told of rows where no job counts them."""


@dataclass(frozen=True)
class Delivery:
    """What the fleet does with each item of a render job; a `fleet.Work`.

    Attributes:
        manifest: where items are committed.
        model: what renders them.
        schedule: which steps to compute; None for all.
        audit_share: of the items, how many are rendered in full too, to measure the others by.
        told: of each row that is committed here.
    """

    manifest: Manifest
    model: Model
    schedule: Schedule | None
    audit_share: float = 0.0
    told: Committed = _nobody

    def __call__(self, studio: StagedGang, item: WorkItem) -> dict[str, Any]:
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
                studio, item, len(failures), status=manifest.FAILED, error=failures[-1]
            )
        try:
            return self._deliver(studio, item, len(failures) + 1)
        except GangTaskError as error:
            attempts.record_failure(self.manifest, item, str(error))
            raise TryAgainError(str(error)) from error

    def lost(self, item: WorkItem, how: str) -> None:
        """Counts the attempt of a leader that died with the item; a `fleet.Lost`."""
        attempts.record_failure(self.manifest, item, how)

    def _deliver(self, studio: StagedGang, item: WorkItem, attempt: int) -> dict[str, Any]:
        """One attempt. Raises GangTaskError where it fails, perhaps by the item's own fault."""
        if not studio.gang.pace.known:
            self._learn_pace(studio, item)
        # Longer every time: what is slow for a reason should not be killed three times.
        patience = 2 ** (attempt - 1)
        codec = studio.codec
        texts, text_s = codec.run(encode_prompt, item, codec.pace.deadline_s(0) * patience)
        request = RenderRequest(item, self.schedule, texts)
        drawing, frames, decode_s = self._draw(studio, request, patience)
        rendered = time.perf_counter()
        data = encoded(self.model, frames)
        written = time.perf_counter()
        sha256 = hashlib.sha256(data).hexdigest()
        key = manifest.video_key(item.id, sha256, "png" if self.model.kind.is_image else "mp4")
        store = self.manifest.store
        store.put_new(key, data)
        uploaded = time.perf_counter()
        fidelity = self._audited(studio, request, frames) if attempt == 1 else {}
        return self._commit(
            studio,
            item,
            attempt,
            status=manifest.OK,
            uri=store.uri(key),
            key=key,
            sha256=sha256,
            bytes=len(data),
            nfe=drawing.nfe,
            render_s=text_s + drawing.loop_s + decode_s,
            encode_s=written - rendered,
            upload_s=uploaded - written,
            metrics={
                "text_s": text_s,
                "denoise_s": drawing.loop_s,
                "decode_s": decode_s,
                "gang_s": drawing.gang_s,
                **fidelity,
            },
        )

    def _draw(
        self, studio: StagedGang, request: RenderRequest, patience: int
    ) -> tuple[Denoised, np.ndarray, float]:
        """Draws and decodes: the drawing, its frames and the seconds that decoding took."""
        item, gang, codec = request.item, studio.gang, studio.codec
        size = self._size(item, request.schedule)
        drawing = gang.run(denoise_item, request, gang.pace.deadline_s(size) * patience)
        gang.pace.observe(size, drawing.loop_s)
        pixels = _size(self._shape(item), 1)
        deadline_s = codec.pace.deadline_s(pixels) * patience
        frames, decode_s = codec.run(decode_item, (drawing.latents, item), deadline_s)
        codec.pace.observe(pixels, decode_s)
        return drawing, frames, decode_s

    def _audited(
        self, studio: StagedGang, request: RenderRequest, frames: np.ndarray
    ) -> dict[str, float]:
        """An audited item's fidelity to its full run.

        For first attempts alone: a full run that fails costs an attempt, but never the row.
        """
        chosen = audit.is_chosen(request.item.id, self.audit_share)
        if self.schedule is None or not chosen:
            return {}
        _, full, _ = self._draw(studio, replace(request, schedule=None), patience=1)
        return audit.fidelity(frames, full)

    def _learn_pace(self, studio: StagedGang, item: WorkItem) -> None:
        """A new studio's memory: what others have delivered of the item's shard."""
        store = self.manifest.store
        folder = self.manifest.receipt_key(item.shard, "").rpartition("/")[0]
        for key, _ in zip(store.list(f"{folder}/"), range(PACE_SAMPLE), strict=False):
            row = json.loads(store.get(key))
            if row["status"] == manifest.OK and row["world_size"] == studio.world_size:
                took = row["metrics"]
                studio.gang.pace.observe(_size(row, row["nfe"]), took["denoise_s"])
                studio.codec.pace.observe(_size(row, 1), took["decode_s"])

    def _size(self, item: WorkItem, schedule: Schedule | None) -> float:
        steps = item.arguments["num_inference_steps"]
        computed = steps if schedule is None else schedule.nfe
        return _size(self._shape(item), computed * self.model.calls(item.arguments))

    def _shape(self, item: WorkItem) -> dict[str, int]:
        shape = self.model.shape(item.arguments)
        return dict(zip(("num_frames", "height", "width"), shape, strict=True))

    def _commit(
        self, studio: StagedGang, item: WorkItem, attempts_: int, **known: Any
    ) -> dict[str, Any]:
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
            "world_size": studio.world_size,
            "attempts": attempts_,
            "fps": self.model.fps,
            "metrics": {},
            # Beyond the manifest's columns: what a row overrides is in no other place.
            "arguments": dict(item.arguments),
            "created_at": manifest.now(),
            **known,
        }
        committed = self.manifest.commit(row)
        if committed is row:  # and not another driver's, which counts it itself
            self.told(row, self.manifest.store.retries)
            logs.item(row)
        return committed


def _size(of: Mapping[str, Any], forwards: int) -> float:
    """What a video's time grows with: the pixels of all its forwards."""
    return float(of["num_frames"] * of["height"] * of["width"] * forwards)
