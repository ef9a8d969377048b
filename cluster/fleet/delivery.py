"""Delivers one item of a render job: prompt -> embeddings -> latents -> frames -> mp4 -> receipt.

The order is the promise: the video is in the store before its receipt, so a receipt implies its
mp4, and a leader killed anywhere in between leaves at worst an unreferenced file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.fleet import logs
from cluster.fleet.giving_up import CountedWork
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
from cluster.results import audit, manifest
from cluster.results.attempts import Attempts
from cluster.results.manifest import Manifest
from cluster.results.parts import RECEIPT
from cluster.store import MissingKey
from cluster.work.pictures import fetched
from cluster.work.plan import WorkItem
from cluster.work.schedule_table import Chosen, schedule_of
from meancache import Schedule

# How many of a shard's receipts tell a new gang how long a video takes.
PACE_SAMPLE = 10


Committed = Callable[[Mapping[str, Any], int], None]
"""Called with a row that this process has committed, and its store's `retries`. Must pickle."""


def _nobody(row: Mapping[str, Any], store_retries: int) -> None:
    """For jobs that count no rows."""


@dataclass(frozen=True)
class Delivery(CountedWork):
    """What the fleet does with each item of a render job.

    Attributes:
        manifest: where items are committed.
        model: what renders them.
        schedule: which steps to compute, for all items or by their setting; None for all.
        audit_share: share of the items that are rendered in full too, to measure the others by.
        told: called with each row that is committed here.
    """

    manifest: Manifest
    model: Model
    schedule: Chosen
    audit_share: float = 0.0
    told: Committed = _nobody

    @property
    def attempts(self) -> Attempts:
        """Where failed attempts are counted."""
        return Attempts(self.manifest.store, retry_round=self.manifest.retry_round)

    def committed(self, item: WorkItem) -> dict[str, Any] | None:
        """The item's row, as its receipt holds it, if there is one."""
        with suppress(MissingKey):
            return self.manifest.receipt(item)
        return None

    def give_up(self, gang: StagedGang, item: WorkItem, reasons: Sequence[str]) -> dict[str, Any]:
        """Commits a failed row, with the last reason."""
        return self._commit(gang, item, len(reasons), status=manifest.FAILED, error=reasons[-1])

    def attempt(self, gang: StagedGang, item: WorkItem, number: int) -> dict[str, Any]:
        """Renders, uploads and commits one item; returns its row, as its receipt holds it."""
        if item.image is not None:
            if item.image.error is not None:  # no attempt would make it another
                return self.give_up(gang, item, [item.image.error])
            item = replace(item, image=fetched(self.manifest.store, item.image))
        if not gang.gang.pace.known:
            self._learn_pace(gang, item)
        # Doubled by each attempt: what is slow for a reason should not be killed three times.
        patience = 2 ** (number - 1)
        encoders = gang.encoders
        texts, text_s = encoders.run(encode_prompt, item, encoders.pace.deadline_s(0) * patience)
        store = self.manifest.store
        request = RenderRequest(item, schedule_of(self.schedule, item.arguments), texts, store)
        denoised, frames, decode_s = self._render(gang, request, patience)
        rendered = time.perf_counter()
        data = encoded(self.model, frames)
        written = time.perf_counter()
        sha256 = hashlib.sha256(data).hexdigest()
        key = manifest.video_key(item.id, sha256, "png" if self.model.kind.is_image else "mp4")
        store.put_new(key, data)
        uploaded = time.perf_counter()
        fidelity = self._audited(gang, request, frames) if number == 1 else {}
        return self._commit(
            gang,
            item,
            number,
            status=manifest.OK,
            uri=store.uri(key),
            key=key,
            sha256=sha256,
            bytes=len(data),
            nfe=denoised.nfe,
            attention=denoised.attention,
            adapter_swaps=int(denoised.swapped),
            render_s=text_s + denoised.loop_s + decode_s,
            encode_s=written - rendered,
            upload_s=uploaded - written,
            metrics={
                "text_s": text_s,
                "denoise_s": denoised.loop_s,
                "decode_s": decode_s,
                "gang_s": denoised.gang_s,
                "ideal_s": denoised.nfe * denoised.forward_s,
                **fidelity,
            },
        )

    def _render(
        self, gang: StagedGang, request: RenderRequest, patience: int
    ) -> tuple[Denoised, np.ndarray, float]:
        """Denoises and decodes: the latents, the frames and the seconds that decoding took."""
        item, denoisers, encoders = request.item, gang.gang, gang.encoders
        size = self._size(item, request.schedule)
        denoised = denoisers.run(denoise_item, request, denoisers.pace.deadline_s(size) * patience)
        denoisers.pace.observe(size, denoised.loop_s)
        pixels = _size(self._shape(item), 1)
        deadline_s = encoders.pace.deadline_s(pixels) * patience
        latents = denoised.latents, replace(item, image=None)
        frames, decode_s = encoders.run(decode_item, latents, deadline_s)
        encoders.pace.observe(pixels, decode_s)
        return denoised, frames, decode_s

    def _audited(
        self, gang: StagedGang, request: RenderRequest, frames: np.ndarray
    ) -> dict[str, float]:
        """An audited item's fidelity to its full run.

        For first attempts alone: a full run that fails costs an attempt, but never the row.
        """
        chosen = audit.is_chosen(request.item.id, self.audit_share)
        if request.schedule is None or not chosen:
            return {}
        _, full, _ = self._render(gang, replace(request, schedule=None), patience=1)
        return audit.fidelity(frames, full)

    def _learn_pace(self, gang: StagedGang, item: WorkItem) -> None:
        """A new gang's memory: what others have delivered of the item's shard."""
        store = self.manifest.store
        folder = self.manifest.receipt_key(item.shard, "").rpartition("/")[0]
        for key, _ in zip(store.list(f"{folder}/"), range(PACE_SAMPLE), strict=False):
            row = json.loads(store.get(key))
            if row["status"] == manifest.OK and row["world_size"] == gang.world_size:
                took = row["metrics"]
                gang.gang.pace.observe(_size(row, row["nfe"]), took["denoise_s"])
                gang.encoders.pace.observe(_size(row, 1), took["decode_s"])

    def _size(self, item: WorkItem, schedule: Schedule | None) -> float:
        steps = item.arguments["num_inference_steps"]
        computed = steps if schedule is None else schedule.nfe
        return _size(self._shape(item), computed * self.model.calls(item.arguments))

    def _shape(self, item: WorkItem) -> dict[str, int]:
        shape = self.model.shape(item.arguments)
        return dict(zip(("num_frames", "height", "width"), shape, strict=True))

    def _commit(
        self, gang: StagedGang, item: WorkItem, attempts_: int, **known: Any
    ) -> dict[str, Any]:
        empty = dict.fromkeys(RECEIPT)
        schedule = schedule_of(self.schedule, item.arguments)
        row = {
            **empty,
            "item_id": item.id,
            "prompt_id": item.prompt_id,
            "prompt": item.prompt,
            "model": self.model.id,
            "model_revision": self.model.revision,
            "schedule_id": None if schedule is None else schedule.id,
            "index": item.index,
            "seed": item.seed,
            "shard": item.shard,
            **self._shape(item),
            "num_inference_steps": item.arguments["num_inference_steps"],
            "world_size": gang.world_size,
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
    """The pixels of all forwards of a video, with which its time grows."""
    return float(of["num_frames"] * of["height"] * of["width"] * forwards)
