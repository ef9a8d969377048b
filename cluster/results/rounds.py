"""The rounds of a root: what it began with, then each retry of what failed and each append.

    job.json        round 0: the rows that the root began with
    job.r{n}.json   created once, by whoever begins round n: the rows that it adds, or that it is a
                    retry

A round has receipts, parts and a `_SUCCESS` of its own, as `cluster.results.manifest` says, and
the next one begins when it is finished. Rows that a round adds are numbered on from those that are
there, and so are their shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.results import manifest
from cluster.results.manifest import UNREADABLE, Manifest, Success
from cluster.store import AlreadyExists, MissingKey, Store, StoreError
from cluster.work.plan import SHARD_SIZE, SPEC_KEY, SpecError
from meancache.json_values import canonical_json, is_deep

APPEND, RETRY = "append", "retry"
SCHEMA = 1
_KEY = re.compile(r"job\.r([1-9]\d{0,8})\.json")


@dataclass(frozen=True)
class Segment:
    """A run of a root's rows: those that it began with, or those that a round added.

    Attributes:
        round: 0, or which one added them.
        rows: how many they are.
        digest: of their ids, items and other columns.
        first_row: the index of the first of them.
        first_shard: of their items.
        shards: how many their items fill.
    """

    round: int
    rows: int
    digest: str
    first_row: int = 0
    first_shard: int = 0
    shards: int = 0


def key_of(number: int) -> str:
    """Where the description of a round lies."""
    return f"job.r{number}.json" if number else SPEC_KEY


def round_of(key: str) -> int | None:
    """Which round a part or failures are of, by their key; None for what is no part's name."""
    match = re.fullmatch(r".*/part-\d{6,9}(?:-r([1-9]\d{0,8}))?\.parquet", key)
    return int(match[1] or 0) if match else None


def begin(store: Store, number: int, content: Mapping[str, Any]) -> None:
    """Takes a round for an append or a retry, or finds that it is taken for the same.

    Raises:
        SpecError: it is taken for something else.
        StoreError: the store failed.
    """
    try:
        store.put_new(key_of(number), canonical_json(content))
    except AlreadyExists:
        raise SpecError(
            f"{store.uri(key_of(number))} says that another append, or a retry of what failed, "
            "has begun meanwhile: when that is finished, run the same command again"
        ) from None


def retry(segment: int) -> dict[str, Any]:
    """What a retry of the failed rows of a segment, named by its round, says of itself."""
    return {"schema": SCHEMA, "kind": RETRY, "of": segment}


def documents(store: Store) -> dict[int, dict[str, Any]]:
    """What each round after the first says of itself. Raises StoreError where one is damaged."""
    found = {}
    for key in store.list("job."):
        if match := _KEY.fullmatch(key):
            found[int(match[1])] = _document(store, key)
    return found


def _document(store: Store, key: str) -> dict[str, Any]:
    try:
        content = json.loads(store.get(key))
        if is_deep(content) or content["kind"] not in (APPEND, RETRY):
            raise ValueError
        if content["kind"] == APPEND:
            for name in ("rows", "items", "first_row", "first_shard"):
                if type(content[name]) is not int or content[name] < 0:
                    raise ValueError
            if not isinstance(content["prompts"], str):
                raise ValueError
            if not all(isinstance(one, dict) for one in content.get("schedules", [])):
                raise ValueError
    except UNREADABLE as error:
        raise StoreError(f"{store.uri(key)} is damaged: not what a round says of itself") from error
    return dict(content)


def open_round(store: Store) -> tuple[int, str] | None:
    """The round after the first that was begun and is not finished, and its kind."""
    begun = documents(store)
    number = max(begun, default=0)
    if number == 0 or store.exists(Manifest(store, number).success_key):
        return None
    return number, begun[number]["kind"]


def complete(store: Store) -> tuple[Manifest, Success] | None:
    """As `manifest.finished`, but None where rows are being appended."""
    there = manifest.finished(store)
    now_open = open_round(store) if there is not None else None
    return None if now_open is not None and now_open[1] == APPEND else there


def segments(store: Store) -> list[Segment]:
    """The root's rows, in their order; none where it is unused.

    Raises:
        SpecError: the root is no render's, or one of an earlier version, whose rows do not say
            what they are.
        StoreError: the store failed, or a round's description is damaged.
    """
    try:
        spec = json.loads(store.get(SPEC_KEY))
        root = Segment(0, spec["rows"], spec["prompts"], shards=shards_of(spec["items"]))
    except MissingKey:
        return []
    except UNREADABLE:
        raise SpecError(
            f"{store.uri(SPEC_KEY)} is not a render's of this version, to which rows can be "
            "appended: choose another --output"
        ) from None
    added = [
        Segment(
            number,
            content["rows"],
            content["prompts"],
            content["first_row"],
            content["first_shard"],
            shards_of(content["items"]),
        )
        for number, content in sorted(documents(store).items())
        if content["kind"] == APPEND
    ]
    return [root, *added]


def shards_of(items: int) -> int:
    """How many shards so many items fill."""
    return -(-items // SHARD_SIZE)


def specification(store: Store) -> dict[str, Any]:
    """What job.json says; where a round has schedules of its own, all are among its `schedules`.

    Raises:
        MissingKey: there is no job.
        StoreError: a round's description is damaged.
        ValueError, LookupError, TypeError: job.json is no specification.
    """
    spec = json.loads(store.get(SPEC_KEY))
    if not isinstance(spec, dict):
        raise ValueError(f"{SPEC_KEY} is not a JSON object")
    added = [one for content in documents(store).values() for one in content.get("schedules", [])]
    if not added:
        return spec
    single = [] if spec.get("schedule") is None else [spec["schedule"]]
    every = {one["id"]: one for one in [*single, *spec.get("schedules", []), *added]}
    return {**spec, "schedule": None, "schedules": list(every.values())}
