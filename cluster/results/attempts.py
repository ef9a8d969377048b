"""Failed attempts at an item, counted in the store, so that no restart forgets them.

    attempts/{shard:06d}/{id}.r{healing}.{n}.json     the n-th failure, written once

A failure is written by the leader that saw it; that of a leader which died, by the driver. An
attempt that ends with its whole job (a stopped job, a reclaimed cluster) leaves none: it says
nothing of the item.
"""

from __future__ import annotations

import json
import secrets
from itertools import count, islice

from cluster.results.manifest import Manifest, at_once
from cluster.store import AlreadyExists, Store
from cluster.work.plan import WorkItem
from meancache.json_values import canonical_json

# Of an error's text; the whole of it is in the log of its rank.
REASON_LENGTH = 2000
_FOLDER = "attempts/"


def failures(manifest: Manifest, item: WorkItem) -> list[str]:
    """Why earlier attempts at the item failed, the oldest first."""
    return [json.loads(manifest.store.get(key))["error"] for key in _keys(manifest, item)]


def recorded(store: Store, most: int) -> list[tuple[str, str]]:
    """(item id, reason) of the failed attempts of a root, the first `most` by shard and id."""
    keys = list(islice(store.list(_FOLDER), most))
    reasons = at_once(lambda key: json.loads(store.get(key))["error"], keys)
    return [
        (key.rpartition("/")[2].partition(".")[0], reason)
        for key, reason in zip(keys, reasons, strict=True)
    ]


def record_failure(manifest: Manifest, item: WorkItem, reason: str) -> None:
    """Counts one failed attempt at the item; returns when it is durable."""
    # Text of any origin: what UTF-8 cannot hold would break the manifest's Parquet.
    text = reason[:REASON_LENGTH].encode(errors="replace").decode()
    # Two drivers may count at once: whoever finds a number taken takes the next.
    content = canonical_json({"error": text, "token": secrets.token_hex(8)})
    for number in count(len(_keys(manifest, item)) + 1):
        try:
            manifest.store.put_new(f"{_prefix(manifest, item)}{number}.json", content)
        except AlreadyExists:
            continue
        return


def _prefix(manifest: Manifest, item: WorkItem) -> str:
    return f"{_FOLDER}{item.shard:06d}/{item.id}.r{manifest.healing}."


def _keys(manifest: Manifest, item: WorkItem) -> list[str]:
    keys = manifest.store.list(_prefix(manifest, item))
    return sorted(keys, key=lambda key: int(key.split(".")[-2]))
