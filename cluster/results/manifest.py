"""Receipts, parts and `_SUCCESS`: the memory of a render job, and the dataset it leaves.

    videos/{id[:2]}/{id}.{sha256[:16]}.mp4     content-addressed, never overwritten; .png of a
                                               model of images, whose rows have fps 0 and 1 frame
    receipts/{shard:06d}/{id}.json             created once: the commit point of an item; its row,
                                               and the arguments of its call
    manifest/parts/part-{shard:06d}.parquet    its shard's `ok` rows, with all rows of an item
    failures/part-{shard:06d}.parquet          its shard's rows that were given up
    manifest/_SUCCESS                          once every item is accounted for
    report.html                                all of it on a page; derived, and no part of it

The n-th round after that, a retry of what failed or an append (`cluster.results.rounds`), adds the
same files beside these, as {id}.r{n}.json, part-{shard:06d}-r{n}.parquet and _SUCCESS.r{n}, and
rewrites nothing.

Parts are a pure function of receipts, so any driver may write them, twice or at once. A resumed
job lists parts, then the receipts of open shards alone; videos/ is never listed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.parts import SCHEMA, read_rows, read_table, to_parquet
from cluster.store import AlreadyExists, Store, StoreError
from cluster.work.plan import WorkItem
from meancache.json_values import canonical_json

SUCCESS_KEY = "manifest/_SUCCESS"
PARTS = "manifest/parts/"
FAILURES = "failures/"
OK, FAILED = "ok", "failed"
# Requests to a store that are under way at once: one S3 request takes tens of milliseconds.
REQUESTS_AT_ONCE = 16
# What a damaged JSON file makes of its readers.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

T = TypeVar("T")
R = TypeVar("R")

__all__ = [
    "FAILED",
    "FAILURES",
    "OK",
    "PARTS",
    "REQUESTS_AT_ONCE",
    "SCHEMA",
    "SUCCESS_KEY",
    "UNREADABLE",
    "Manifest",
    "Success",
    "at_once",
    "by_shard",
    "failed_ids",
    "failed_items",
    "finished",
    "now",
    "read_part",
    "read_rows",
    "read_table",
    "retry_rounds",
    "so_far",
    "stage_seconds",
    "to_parquet",
    "video_key",
]


def video_key(item_id: str, sha256: str, ending: str = "mp4") -> str:
    """Where an item's mp4 or png lies; made of hex digits alone, never of a user's text."""
    return f"videos/{item_id[:2]}/{item_id}.{sha256[:16]}.{ending}"


@dataclass(frozen=True)
class Success:
    """What is there once every item is accounted for; the content of a `_SUCCESS` file.

    Attributes:
        rows: videos that there are.
        failed: items given up that no retry round has rendered since.
        parts: key and sha256 of every part, those of retry rounds included.
        failures: key and sha256 of the files that list the `failed` items.
    """

    rows: int
    failed: int
    parts: tuple[tuple[str, str], ...]
    failures: tuple[tuple[str, str], ...]

    def to_json(self) -> bytes:
        """The file's content."""
        return canonical_json(
            {
                "rows": self.rows,
                "failed": self.failed,
                "parts": [{"key": key, "sha256": sha256} for key, sha256 in self.parts],
                "failures": [{"key": key, "sha256": sha256} for key, sha256 in self.failures],
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Success:
        """Reads a file's content. Raises ValueError where it is no `_SUCCESS`."""
        try:
            content = json.loads(data)
            parts, failures = (
                tuple((str(entry["key"]), str(entry["sha256"])) for entry in content[name])
                for name in ("parts", "failures")
            )
            return cls(int(content["rows"]), int(content["failed"]), parts, failures)
        except UNREADABLE as error:
            raise ValueError("is damaged: not a manifest's success file") from error


@dataclass(frozen=True)
class Manifest:
    """The receipts, parts and `_SUCCESS` of a job, or of a round that retries or appends.

    Attributes:
        store: the job's root.
        retry_round: 0 for the job itself, n for its n-th round after that.
    """

    store: Store
    retry_round: int = 0

    @property
    def success_key(self) -> str:
        """Where `_SUCCESS` lies."""
        return SUCCESS_KEY + self._suffix(".")

    def receipt_key(self, shard: int, item_id: str) -> str:
        """Where an item's receipt lies."""
        return f"receipts/{shard:06d}/{item_id}{self._suffix('.')}.json"

    def part_key(self, shard: int) -> str:
        """Where a shard's `ok` rows lie."""
        return f"{PARTS}part-{shard:06d}{self._suffix('-')}.parquet"

    def failures_key(self, shard: int) -> str:
        """Where a shard's `failed` rows lie, if it has any."""
        return f"{FAILURES}part-{shard:06d}{self._suffix('-')}.parquet"

    def _suffix(self, mark: str) -> str:
        return f"{mark}r{self.retry_round}" if self.retry_round else ""

    def commit(self, row: dict[str, Any]) -> dict[str, Any]:
        """Commits an item; from here on it is done. Returns the row that counts.

        Another driver may have committed the item first: then its receipt counts, not this one.
        """
        key = self.receipt_key(row["shard"], row["item_id"])
        try:
            self.store.put_new(key, canonical_json(row))
        except AlreadyExists:
            return json.loads(self.store.get(key))
        return row

    def receipt(self, item: WorkItem) -> dict[str, Any]:
        """An item's row as it was committed. Raises MissingKey where it is still open."""
        return json.loads(self.store.get(self.receipt_key(item.shard, item.id)))

    def open_shards(self, items: Sequence[WorkItem]) -> dict[int, list[WorkItem]]:
        """Shards without a part, and which of their items have no receipt (perhaps none).

        Lists the parts, and the receipts of those shards that have none.
        """
        closed = set(self.store.list(PARTS))

        def missing(shard: int) -> list[WorkItem]:
            receipts = set(self.store.list(f"receipts/{shard:06d}/"))
            return [
                item for item in shards[shard] if self.receipt_key(shard, item.id) not in receipts
            ]

        shards = {
            shard: members
            for shard, members in by_shard(items).items()
            if self.part_key(shard) not in closed
        }
        return dict(zip(shards, at_once(missing, shards), strict=True))

    def close_shard(
        self,
        shard: int,
        items: Sequence[WorkItem],
        beside: pa.Table | None = None,
        schema: pa.Schema = SCHEMA,
        first: int = 0,
    ) -> None:
        """Writes a shard's part (and its failures) from its receipts; all must be there.

        Args:
            shard: which.
            items: all of its items.
            beside: the plan's own columns of its rows, by index.
            schema: of the part.
            first: the index of the first row of `beside`.

        Raises:
            MissingKey: an item of the shard has no receipt yet.
        """
        if self.store.exists(self.part_key(shard)):
            return
        receipts = at_once(self.receipt, items)
        rows = [
            {**receipt, "index": index, "prompt_id": prompt_id}
            for item, receipt in zip(items, receipts, strict=True)
            for index, prompt_id in item.rows
        ]
        failed = [row for row in rows if row["status"] != OK]
        # Before the part, which closes its shard. Where a driver that was killed in between has
        # left them, another version of the Parquet library may have written other bytes.
        if failed and not self.store.exists(self.failures_key(shard)):
            self.store.put_new(self.failures_key(shard), to_parquet(failed, beside, schema, first))
        ok = [row for row in rows if row["status"] == OK]
        self.store.put_new(self.part_key(shard), to_parquet(ok, beside, schema, first))

    def finish(self, shards: Iterable[int], before: Success | None = None) -> Success:
        """Writes `_SUCCESS` over all parts, and returns its content.

        Args:
            shards: of the job, or those that this round went through.
            before: of the job or the round before this one. What it lists as failed in other
                shards has failed still.

        Raises:
            MissingKey: a shard has no part yet.
        """
        shards = list(shards)
        written = set(self.store.list(FAILURES))
        failed = [key for key in map(self.failures_key, shards) if key in written]
        if before:
            here = {Manifest(self.store).failures_key(shard) for shard in shards}
            of_shard = partial(re.compile(r"-r\d+(?=\.parquet$)").sub, "")
            failed = [key for key, _ in before.failures if of_shard(key) not in here] + failed
        measure = partial(_measured, self.store)
        parts = at_once(measure, [self.part_key(shard) for shard in shards])
        failures = at_once(measure, failed)
        success = Success(
            rows=sum(rows for _, _, rows in parts) + (before.rows if before else 0),
            failed=sum(rows for _, _, rows in failures),
            parts=(before.parts if before else ()) + tuple(part[:2] for part in parts),
            failures=tuple(part[:2] for part in failures),
        )
        self.store.put_new(self.success_key, success.to_json())
        return success


def _measured(store: Store, key: str) -> tuple[str, str, int]:
    """A Parquet file's key, sha256 and number of rows. Raises StoreError where it is damaged."""
    data = store.get(key)
    try:
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{store.uri(key)} is damaged: {error}; see jobs.verify") from error
    return key, hashlib.sha256(data).hexdigest(), rows


def retry_rounds(store: Store) -> list[int]:
    """Which of the job (0) and its later rounds (1, 2, ...) have a `_SUCCESS`."""
    names = [key.removeprefix(SUCCESS_KEY) for key in store.list(SUCCESS_KEY)]
    return [int(name[2:] or 0) for name in names if re.fullmatch(r"|\.r[1-9]\d{0,8}", name)]


def finished(store: Store) -> tuple[Manifest, Success] | None:
    """The job or the last round of it that came to its end, or None where nothing did.

    Raises:
        StoreError: its `_SUCCESS` is damaged.
    """
    there = retry_rounds(store)
    if not there:
        return None
    last = Manifest(store, max(there))
    try:
        return last, Success.from_json(store.get(last.success_key))
    except ValueError as error:
        raise StoreError(f"{store.uri(last.success_key)} {error}; see jobs.verify") from error


def so_far(store: Store) -> Success:
    """What a job that is on its way has: its parts, as a `_SUCCESS` would name them."""
    found = at_once(partial(_measured, store), store.list(PARTS))
    parts = tuple((key, sha256) for key, sha256, _ in found)
    return Success(sum(rows for _, _, rows in found), 0, parts, ())


def failed_items(store: Store, success: Success) -> set[tuple[int, str]]:
    """(shard, id) of the items that a finished job has given up. Raises StoreError."""
    files = at_once(partial(read_part, store), [key for key, _ in success.failures])
    return {(row["shard"], row["item_id"]) for rows in files for row in rows}


def failed_ids(store: Store, success: Success) -> set[str]:
    """The ids of the items that a finished job has given up. Raises StoreError."""
    return {item_id for _, item_id in failed_items(store, success)}


def read_part(store: Store, key: str) -> list[dict[str, Any]]:
    """The rows of one file of the manifest. Raises StoreError where it cannot be read."""
    try:
        return read_rows(store.get(key))
    except ValueError as error:
        raise StoreError(f"{store.uri(key)} is damaged: {error}; see jobs.verify") from error


def by_shard(items: Iterable[WorkItem]) -> dict[int, list[WorkItem]]:
    """The plan's items, grouped by shard."""
    shards: dict[int, list[WorkItem]] = {}
    for item in items:
        shards.setdefault(item.shard, []).append(item)
    return shards


def at_once(request: Callable[[T], R], subjects: Iterable[T]) -> list[R]:
    """Makes a request about each subject, many at once; the answers in order."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(request, subjects))


def now() -> str:
    """The time for a row's `created_at`, UTC, as text that JSON can hold."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def stage_seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage that a row knows, by name: render, encode, upload, denoise, ..."""
    return {
        name.removesuffix("_s"): seconds
        for name, seconds in {**row, **row["metrics"]}.items()
        if name.endswith("_s") and seconds is not None
    }
