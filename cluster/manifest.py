"""Receipts, parts and `_SUCCESS`: the memory of a render job, and the dataset it leaves.

    videos/{id[:2]}/{id}.{sha256[:16]}.mp4     content-addressed, never overwritten
    receipts/{shard:06d}/{id}.json             created once: the commit point of an item
    manifest/parts/part-{shard:06d}.parquet    its shard's `ok` rows
    failures/part-{shard:06d}.parquet          its shard's rows that were given up
    manifest/_SUCCESS                          once every item is accounted for

Parts are a pure function of receipts, so any driver may write them, twice or at once. A resumed
job lists parts, then the receipts of open shards alone; videos/ is never listed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import WorkItem
from cluster.store import AlreadyExists, MissingKey, Store, StoreError
from meancache.schedule import canonical_json

SUCCESS_KEY = "manifest/_SUCCESS"
PARTS = "manifest/parts/"
OK, FAILED = "ok", "failed"
MISSING = "is missing"
# What a damaged JSON file makes of its readers.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("key", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_revision", pa.string(), nullable=False),
        pa.field("schedule_id", pa.string()),
        pa.field("error", pa.string()),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("num_inference_steps", pa.int32(), nullable=False),
        pa.field("nfe", pa.int32()),
        pa.field("world_size", pa.int32(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("fps", pa.float32(), nullable=False),
        pa.field("render_s", pa.float64()),
        pa.field("encode_s", pa.float64()),
        pa.field("upload_s", pa.float64()),
        pa.field("metrics", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ],
    metadata={b"schema": b"1"},
)


def video_key(item_id: str, sha256: str) -> str:
    """Where an item's mp4 lies; made of hex digits alone, never of a user's text."""
    return f"videos/{item_id[:2]}/{item_id}.{sha256[:16]}.mp4"


def receipt_key(shard: int, item_id: str) -> str:
    """Where an item's receipt lies."""
    return f"receipts/{shard:06d}/{item_id}.json"


def part_key(shard: int) -> str:
    """Where a shard's `ok` rows lie."""
    return f"{PARTS}part-{shard:06d}.parquet"


def failures_key(shard: int) -> str:
    """Where a shard's `failed` rows lie, if it has any."""
    return f"failures/part-{shard:06d}.parquet"


def commit_receipt(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    """Commits an item; from here on it is done. Returns the row that counts.

    Another driver may have committed the item first: then its receipt counts, not this one.
    """
    key = receipt_key(row["shard"], row["item_id"])
    try:
        store.put_new(key, canonical_json(row))
    except AlreadyExists:
        return json.loads(store.get(key))
    return row


def read_receipt(store: Store, item: WorkItem) -> dict[str, Any]:
    """An item's row as it was committed. Raises MissingKey where it is still open."""
    return json.loads(store.get(receipt_key(item.shard, item.id)))


def open_items(store: Store, items: Sequence[WorkItem]) -> list[WorkItem]:
    """The items without a receipt, in plan order.

    Lists the parts, and the receipts of those shards that have none.
    """
    closed = set(store.list(PARTS))
    found: list[WorkItem] = []
    for shard, members in by_shard(items).items():
        if part_key(shard) in closed:
            continue
        receipts = set(store.list(f"receipts/{shard:06d}/"))
        found += [item for item in members if receipt_key(shard, item.id) not in receipts]
    return found


def by_shard(items: Sequence[WorkItem]) -> dict[int, list[WorkItem]]:
    """The plan's items, grouped by shard."""
    shards: dict[int, list[WorkItem]] = {}
    for item in items:
        shards.setdefault(item.shard, []).append(item)
    return shards


def commit_shard(store: Store, shard: int, items: Sequence[WorkItem]) -> None:
    """Writes a shard's part (and its failures) from its receipts, all of which must be there.

    Raises:
        MissingKey: an item of the shard has no receipt yet.
    """
    if store.exists(part_key(shard)):
        return
    rows = [read_receipt(store, item) for item in items]
    failed = [row for row in rows if row["status"] != OK]
    # Before the part, which closes its shard; a driver killed in between has left them already.
    if failed and not store.exists(failures_key(shard)):
        store.put_new(failures_key(shard), to_parquet(failed))
    store.put_new(part_key(shard), to_parquet([row for row in rows if row["status"] == OK]))


def commit_success(store: Store, shards: Sequence[int]) -> dict[str, Any]:
    """Writes `_SUCCESS` over all parts of the job and returns its content.

    Raises:
        MissingKey: a shard has no part yet.
    """
    incomplete = [failures_key(shard) for shard in shards if store.exists(failures_key(shard))]
    parts, rows = _tally(store, [part_key(shard) for shard in shards])
    failures, failed = _tally(store, incomplete)
    success = {"rows": rows, "failed": failed, "parts": parts, "failures": failures}
    store.put_new(SUCCESS_KEY, canonical_json(success))
    return success


def now() -> str:
    """The time for a row's `created_at`, UTC, as text that JSON can hold."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of receipts as a Parquet file of SCHEMA, in plan order."""
    records = [
        {
            **row,
            "metrics": list(row["metrics"].items()),
            "created_at": datetime.fromisoformat(row["created_at"]),
        }
        for row in sorted(rows, key=lambda row: row["index"])
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def read_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of one part.

    Raises:
        ValueError: the bytes are not a Parquet file of SCHEMA.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError("its columns are not those of a manifest part")
    return table.to_pylist()


def verify(store: Store) -> Iterator[tuple[str, str | None]]:
    """Re-hashes everything that the manifest names.

    Yields:
        (uri, None) for each object that is as it should be, (uri, what is wrong) for the others.
    """
    data, problem = _fetch(store, SUCCESS_KEY)
    try:
        success = json.loads(data) if problem is None else {}
        listed = [
            (str(entry["key"]), entry["sha256"])
            for entry in [*success.get("parts", []), *success.get("failures", [])]
        ]
        counts = (success.get("rows"), success.get("failed"))
    except _UNREADABLE:
        problem = "is damaged: not a manifest's success file"
    if problem is not None:
        unfinished = "; the job has not finished, run it again" if problem == MISSING else ""
        yield store.uri(SUCCESS_KEY), problem + unfinished
        return
    found = {OK: 0, FAILED: 0}
    for key, sha256 in listed:
        data, problem = _fetch(store, key, sha256)
        yield _name(store, key), problem
        if problem is None:
            for row in read_rows(data):
                found[row["status"]] += 1
                yield from _verify_row(store, row)
    agree = counts == (found[OK], found[FAILED])
    yield store.uri(SUCCESS_KEY), None if agree else "is damaged: its counts are not the parts'"
    for key in sorted(set(store.list(PARTS)) - {key for key, _ in listed}):
        yield store.uri(key), f"is not named by {SUCCESS_KEY}, but would be read as data"


def _verify_row(store: Store, row: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    receipt = receipt_key(row["shard"], row["item_id"])
    data, problem = _fetch(store, receipt)
    if problem is None:
        try:
            kept = read_rows(to_parquet([json.loads(data)]))
            problem = None if kept == [row] else "is damaged: it contradicts the manifest"
        except (pa.ArrowException, *_UNREADABLE):
            problem = "is damaged: not a receipt"
    yield store.uri(receipt), problem
    if row["status"] == OK:
        yield _name(store, row["key"]), _fetch(store, row["key"], row["sha256"])[1]


def _fetch(store: Store, key: str, sha256: str | None = None) -> tuple[bytes, str | None]:
    """An object, and what is wrong with it: MISSING, of another hash, or not to be read."""
    try:
        data = store.get(key)
    except MissingKey:
        return b"", MISSING
    except StoreError as error:
        return b"", f"cannot be read: {error}"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return data, f"is damaged: its {len(data)} bytes do not have the sha256 of the manifest"
    return data, None


def _name(store: Store, key: str) -> str:
    """The uri of a key that a file names, or the key itself where it cannot be one."""
    try:
        return store.uri(key)
    except StoreError:
        return repr(key)


def _tally(store: Store, keys: Sequence[str]) -> tuple[list[dict[str, str]], int]:
    """Parquet files by key and sha256, and how many rows they hold together."""
    entries, rows = [], 0
    for key in keys:
        data = store.get(key)
        entries.append({"key": key, "sha256": hashlib.sha256(data).hexdigest()})
        rows += pq.read_metadata(io.BytesIO(data)).num_rows
    return entries, rows
