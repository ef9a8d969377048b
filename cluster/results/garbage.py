"""Removes videos that no receipt names and none will, and what a killed driver has left.

An attempt that is killed between its video and its receipt leaves the video behind. Where the
next attempt makes other bytes, nothing names the first, and it is garbage once nobody can commit
it any more.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from functools import partial

from cluster.results import manifest, rounds
from cluster.results.manifest import OK, PARTS, at_once
from cluster.store import Store

VIDEOS = "videos/"
PROOFS = ".shared-"
_VIDEO = re.compile(r"videos/[0-9a-f]{2}/([0-9a-f]{32})\.[0-9a-f]{16}\.(?:mp4|png)")
_PROOF = re.compile(r"\.shared-[0-9a-f]{16}(?:-[0-9a-f]{16})?")


def collect(store: Store, grace_s: float) -> Iterator[tuple[str, int]]:
    """Removes the garbage of a render root; yields (uri, bytes) of each video removed.

    A gang that finds its video in the store already may be about to write the receipt, so age alone
    makes nothing garbage: a video goes only if its item is done under another name or, where the
    job is finished, is not among those that a retry round may still render.

    Args:
        store: the root of a render job, running or finished.
        grace_s: seconds since a video was written, below which it stays.

    Raises:
        StoreError: the manifest cannot be read; nothing is removed then.
    """
    # First whether the job is finished: what it commits from here on is then among the named.
    there = rounds.complete(store)
    named = _named(store)
    open_to = None if there is None else manifest.failed_ids(store, there[1])
    done = {_item(key) for key in named}
    before = time.time() - grace_s
    for entry in store.entries(VIDEOS):
        match = _VIDEO.fullmatch(entry.key)
        if match is None or entry.key in named or entry.modified > before:
            continue
        item = match[1]
        if item in done or (open_to is not None and item not in open_to):
            store.delete(entry.key)
            yield store.uri(entry.key), entry.bytes


def collect_proofs(store: Store, grace_s: float) -> Iterator[str]:
    """Removes the proofs of a shared output that killed drivers have left; yields their uris.

    `cluster.fleet.shared_output` writes them. A driver that runs needs its own, so nothing is
    removed while the root is not finished.

    Args:
        store: the root of a render job.
        grace_s: seconds since one was written, below which it stays.

    Raises:
        StoreError: the store failed.
    """
    if rounds.complete(store) is None or rounds.open_round(store) is not None:
        return
    before = time.time() - grace_s
    for entry in store.entries(PROOFS):
        if _PROOF.fullmatch(entry.key) and entry.modified <= before:
            store.delete(entry.key)
            yield store.uri(entry.key)


def _named(store: Store) -> set[str]:
    """The keys of all videos that a part or, in a shard without one, a receipt names."""
    parts = list(store.list(PARTS))
    named = {
        row["key"] for rows in at_once(partial(manifest.read_part, store), parts) for row in rows
    }
    # The part of a retry round says nothing of the receipts that its shard had before.
    closed = {re.sub(r".*part-(\d+)\.parquet", r"receipts/\1/", key) for key in parts}
    receipts = [
        key
        for key in store.list("receipts/")
        if key[: len("receipts/000000/")] not in closed or ".r" in key
    ]
    rows = at_once(lambda key: json.loads(store.get(key)), receipts)
    return named | {row["key"] for row in rows if row["status"] == OK}


def _item(key: str) -> str:
    return key.rpartition("/")[2].partition(".")[0]
