"""Rows of a manifest without a render: what receipts hold, and small finished roots of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

from cluster.results import manifest
from cluster.results.manifest import Manifest, Success
from cluster.results.parts import RECEIPT
from cluster.work.plan import WorkItem


def row_of(
    item: WorkItem,
    job: Manifest,
    status: str = "ok",
    data: bytes = b"mp4",
    ending: str = "mp4",
    **changes: Any,
):
    """A row as a leader would commit it; the video of an `ok` one is put into the store."""
    row = {
        **dict.fromkeys(RECEIPT),
        "item_id": item.id,
        "prompt_id": item.prompt_id,
        "prompt": item.prompt,
        "status": status,
        "model": "tiny",
        "model_revision": "r",
        "index": item.index,
        "shard": item.shard,
        "seed": item.seed,
        "num_frames": 9,
        "width": 64,
        "height": 64,
        "num_inference_steps": 50,
        "world_size": 2,
        "attempts": 1,
        "fps": 8.0,
        "metrics": {"psnr": 31.5},
        "created_at": manifest.now(),
    }
    if status == "ok":
        sha256 = hashlib.sha256(data).hexdigest()
        key = manifest.video_key(item.id, sha256, ending)
        job.store.put_new(key, data)
        row |= {"uri": job.store.uri(key), "key": key, "sha256": sha256, "bytes": len(data)}
    else:
        row |= {"error": "rank 1 died"}
    return {**row, **changes}


def finish(
    job: Manifest,
    items: Sequence[WorkItem],
    failed: Collection[int] = (),
    before: Success | None = None,
) -> Success:
    """Commits all items, those of the indices in `failed` as given up, and closes the job."""
    for item in items:
        status = "failed" if item.index in failed else "ok"
        job.commit(row_of(item, job, status, data=item.id.encode()))
    shards = manifest.by_shard(items)
    for shard, members in shards.items():
        job.close_shard(shard, members)
    return job.finish(shards, before)
