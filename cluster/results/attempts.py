"""Failed attempts at an item, counted in the store, so that no restart forgets them.

    {folder}{shard:06d}/{id}.r{retry round}.{n}.json     the n-th failure, written once
    {folder}closed.r{retry round}.json                   a round that ended with failed items

A failure is written by the leader that saw it; that of a leader which died, by the driver. An
attempt that ends with its whole job (a stopped job, a reclaimed cluster) leaves none: it says
nothing of the item.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from itertools import count, islice

from cluster.results.manifest import at_once
from cluster.store import AlreadyExists, Store
from cluster.work.plan import WorkItem
from meancache.json_values import canonical_json

# An error's text is cut here; the whole of it is in the log of its rank.
REASON_LENGTH = 2000
_CLOSED = "closed.r"
RENDER_FOLDER = "attempts/"


@dataclass(frozen=True)
class Attempts:
    """The failed attempts at the items of a job.

    Attributes:
        store: the job's root.
        folder: of the failures, with a slash at its end.
        retry_round: counts again from 0 with each; the failures of earlier rounds stay.
    """

    store: Store
    folder: str = RENDER_FOLDER
    retry_round: int = 0

    def failures(self, item: WorkItem) -> list[str]:
        """Why earlier attempts at the item failed, the oldest first."""
        return [json.loads(self.store.get(key))["error"] for key in self._keys(item)]

    def record(self, item: WorkItem, reason: str) -> None:
        """Counts one failed attempt at the item; returns when it is durable."""
        # Text of any origin: what UTF-8 cannot hold would break the manifest's Parquet.
        text = reason[:REASON_LENGTH].encode(errors="replace").decode()
        # Two drivers may count at once: the one that finds a number taken takes the next.
        content = canonical_json({"error": text, "token": secrets.token_hex(8)})
        for number in count(len(self._keys(item)) + 1):
            try:
                self.store.put_new(f"{self._prefix(item)}{number}.json", content)
            except AlreadyExists:
                continue
            return

    def _prefix(self, item: WorkItem) -> str:
        return f"{self.folder}{item.shard:06d}/{item.id}.r{self.retry_round}."

    def _keys(self, item: WorkItem) -> list[str]:
        keys = self.store.list(self._prefix(item))
        return sorted(keys, key=lambda key: int(key.split(".")[-2]))


def open_round(store: Store, folder: str) -> Attempts:
    """The attempts of a job that begins a retry round wherever it has ended one.

    For jobs whose results are all or nothing: the same command tries again what failed for good.
    """
    closed = sum(1 for _ in store.list(f"{folder}{_CLOSED}"))
    return Attempts(store, folder, retry_round=closed)


def close_round(attempts: Attempts) -> None:
    """The job has ended with items that failed for good; the next run counts from 0."""
    key = f"{attempts.folder}{_CLOSED}{attempts.retry_round}.json"
    attempts.store.put_new(key, canonical_json({"retry_round": attempts.retry_round}))


def recorded(store: Store, most: int) -> list[tuple[str, str]]:
    """(item id, reason) of a render job's failed attempts, the first `most` by shard and id."""
    keys = list(islice(store.list(RENDER_FOLDER), most))
    reasons = at_once(lambda key: json.loads(store.get(key))["error"], keys)
    return [
        (key.rpartition("/")[2].partition(".")[0], reason)
        for key, reason in zip(keys, reasons, strict=True)
    ]
