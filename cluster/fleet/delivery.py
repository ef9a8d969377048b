"""Delivers one item of a render job: prompt -> embeddings -> latents -> frames -> mp4 -> receipt.

The order is the promise: the video is in the store before its receipt, so a receipt implies its
mp4, and a leader killed anywhere in between leaves at worst an unreferenced file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.fleet import logs
from cluster.fleet.gang import GangError, GangTaskError
from cluster.fleet.giving_up import CountedWork
from cluster.fleet.staged_gang import StagedGang
from cluster.models.model import Model
from cluster.ranks import (
    Denoised,
    RenderRequest,
    decode_item,
    denoise_batch,
    denoise_item,
    encode_for_batch,
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
from meancache.json_values import canonical_json

log = logging.getLogger(__name__)

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
        # Doubled by each attempt: what is slow for a reason should not be killed three times.
        patience = 2 ** (number - 1)
        store = self.manifest.store
        with gang.batches.place() as place:
            if not gang.gang.pace.known:
                self._learn_pace(gang, item)
            texts, form, text_s = self._encode(gang, item, patience)
            request = RenderRequest(item, schedule_of(self.schedule, item.arguments), texts, store)
            # What has failed before may be at fault, and goes alone.
            key = form if number == 1 else None
            denoised = place.run(key, (request, patience), partial(self._together, gang))
        frames, decode_s = self._decode(gang, request, denoised, patience)
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
            **_batch(denoised),
        )

    def _encode(
        self, gang: StagedGang, item: WorkItem, patience: int
    ) -> tuple[bytes, str | None, float]:
        """An item's texts, what others must have in common with it to go into one forward (None
        where items go alone), and the seconds that it took."""
        encoders = gang.encoders
        deadline_s = encoders.pace.deadline_s(0) * patience
        if gang.batches.most == 1:
            texts, seconds = encoders.run(encode_prompt, item, deadline_s)
            return texts, None, seconds
        texts, form, seconds = encoders.run(encode_for_batch, item, deadline_s)
        return texts, f"{canonical_json(item.arguments).decode()} {form}", seconds

    def _together(
        self, gang: StagedGang, asked: Sequence[tuple[RenderRequest, int]]
    ) -> Sequence[Denoised | GangError]:
        """Denoises items in one; each by itself where that fails, by whichever's fault."""
        if len(asked) > 1:
            requests = [request for request, _ in asked]
            size = self._size(requests[0].item, requests[0].schedule) * len(requests)
            pace = gang.gang.pace
            try:
                denoised = gang.gang.run(denoise_batch, requests, pace.deadline_s(size))
            except GangTaskError:
                log.warning("a batch of %d failed: each of it is tried alone", len(requests))
            else:
                pace.observe(size, denoised[0].loop_s * len(requests))
                gang.batches.worked()
                return denoised
        alone = [self._alone(gang, *one) for one in asked]
        if len(asked) > 1 and not any(isinstance(one, GangError) for one in alone):
            gang.batches.failed_whole(len(asked))  # by the fault of none of them
        return alone

    def _alone(
        self, gang: StagedGang, request: RenderRequest, patience: int
    ) -> Denoised | GangError:
        try:
            return self._denoise(gang, request, patience)
        except GangError as error:
            return error

    def _denoise(self, gang: StagedGang, request: RenderRequest, patience: int) -> Denoised:
        denoisers, size = gang.gang, self._size(request.item, request.schedule)
        denoised: Denoised = denoisers.run(
            denoise_item, request, denoisers.pace.deadline_s(size) * patience
        )
        denoisers.pace.observe(size, denoised.loop_s)
        return denoised

    def _decode(
        self, gang: StagedGang, request: RenderRequest, denoised: Denoised, patience: int
    ) -> tuple[np.ndarray, float]:
        """The frames, and the seconds that decoding took."""
        item, encoders = request.item, gang.encoders
        pixels = _size(self._shape(item), 1)
        deadline_s = encoders.pace.deadline_s(pixels) * patience
        latents = denoised.latents, replace(item, image=None)
        frames, decode_s = encoders.run(decode_item, latents, deadline_s)
        encoders.pace.observe(pixels, decode_s)
        return frames, decode_s

    def _audited(
        self, gang: StagedGang, request: RenderRequest, frames: np.ndarray
    ) -> dict[str, float]:
        """An audited item's fidelity to its full run.

        For first attempts alone: a full run that fails costs an attempt, but never the row.
        """
        chosen = audit.is_chosen(request.item.id, self.audit_share)
        if request.schedule is None or not chosen:
            return {}
        everything = replace(request, schedule=None)
        full, _ = self._decode(gang, everything, self._denoise(gang, everything, 1), 1)
        return audit.fidelity(frames, full)

    def _learn_pace(self, gang: StagedGang, item: WorkItem) -> None:
        """A new gang's memory: what others have delivered of the item's shard."""
        store = self.manifest.store
        folder = self.manifest.receipt_key(item.shard, "").rpartition("/")[0]
        for key, _ in zip(store.list(f"{folder}/"), range(PACE_SAMPLE), strict=False):
            row = json.loads(store.get(key))
            if row["status"] == manifest.OK and row["world_size"] == gang.world_size:
                took, count = row["metrics"], row.get("batch", 1)
                size, seconds = _size(row, row["nfe"]), took["denoise_s"]
                gang.gang.pace.observe(size * count, seconds * count)
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


def _batch(denoised: Denoised) -> dict[str, int]:
    """What a receipt says of the batch that its item was in."""
    if denoised.batch == 1:
        return {}
    return {"batch": denoised.batch, "batch_place": denoised.place}


def _size(of: Mapping[str, Any], forwards: int) -> float:
    """The pixels of all forwards of a video, with which its time grows."""
    return float(of["num_frames"] * of["height"] * of["width"] * forwards)
