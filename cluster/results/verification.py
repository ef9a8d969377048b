"""Re-hashes what a finished manifest names, and collects what nothing names.

Knows what may be wrong with a root; repairs nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.results import manifest, rounds
from cluster.results.manifest import OK, PARTS, UNREADABLE, Manifest, Success, at_once
from cluster.results.parts import OF_THE_ROW, SCHEMA, TOKENS, to_table
from cluster.results.rounds import APPEND, round_of
from cluster.store import MissingKey, Store, StoreError
from cluster.work.adapters import KEPT, LORA, key_of
from cluster.work.plan import SpecError

MISSING = "is missing"
# Columns of a row that its item's receipt says: another row of the item may differ in the others.
_ITEMS = set(SCHEMA.names) - {*OF_THE_ROW, *TOKENS}
_SHA256 = re.compile("[0-9a-f]{64}")
Finding = tuple[str, str | None]
"""The uri of an object, and what is wrong with it; None where nothing is."""


def verify(store: Store, share: float = 1.0) -> Iterator[list[Finding]]:
    """Re-hashes everything that the manifest names.

    Args:
        store: the root of a finished render job.
        share: of the rows whose receipt and video are read, drawn at random; parts and
            `_SUCCESS` are always read.

    Yields:
        What was found in each file of the manifest and in what it names, as `expected_steps`
        says how often.
    """
    known: dict[str, tuple[str, dict[str, int]]] = {}
    steps = _steps_by_schedule(store)
    adapters = _adapters_of_the_job(store)
    last: Success | None = None
    for retry_round in _expected_rounds(store):
        here = Manifest(store, retry_round)
        data, problem = _fetch(store, here.success_key)
        try:
            success = Success.from_json(data) if problem is None else None
        except ValueError as error:
            success, problem = None, str(error)
        if success is None:
            unfinished = "; the job has not finished, run it again" if problem == MISSING else ""
            yield [(store.uri(here.success_key), f"{problem}{unfinished}")]
            continue
        last = success
        for key, sha256 in [*success.parts, *success.failures]:
            if known.get(key, ("",))[0] != sha256:  # those that an earlier round named are done
                findings, counts = _verify_part(store, key, sha256, share, steps, adapters)
                known[key] = sha256, counts
                yield findings
        agree = (success.rows, success.failed) == (
            sum(known[key][1][OK] for key, _ in success.parts),
            sum(known[key][1][manifest.FAILED] for key, _ in success.failures),
        )
        yield [
            (
                store.uri(here.success_key),
                None if agree else "is damaged: its counts are not the parts'",
            )
        ]
    finished = set(manifest.retry_rounds(store))
    for key in sorted(set(store.list(PARTS)) - set(known)):
        if round_of(key) in {None, *finished}:
            yield [(_name(store, key), "is not named by its _SUCCESS, but would be read as data")]
        else:  # of a job, or a retry round, that is on its way
            yield _verify_part(store, key, None, share, steps, adapters)[0]
    if findings := _verify_adapters(store, adapters):
        yield findings
    if findings := _descriptions(store, last):
        yield findings


def _verify_adapters(store: Store, named: set[str]) -> list[Finding]:
    """What is wrong with the files of adapters: those of the root, and those that rows name."""
    keys = {*map(key_of, named), *store.list(KEPT)}
    return list(at_once(partial(_verify_adapter, store), sorted(keys)))


def _verify_adapter(store: Store, key: str) -> Finding:
    name = key.rpartition("/")[2].removesuffix(".safetensors")
    data, problem = _fetch(store, key)
    if problem is None and hashlib.sha256(data).hexdigest() != name:
        problem = f"is damaged: its {len(data)} bytes do not have the sha256 that it is called by"
    return store.uri(key), problem


def _adapters_of_the_job(store: Store) -> set[str]:
    try:
        return _adapters(rounds.specification(store)["arguments"])
    except (StoreError, *UNREADABLE):
        return set()


def _adapters(arguments: Any) -> set[str]:
    """The sha256s of a call's adapters; of what names none, nothing."""
    given = arguments.get(LORA) if isinstance(arguments, dict) else None
    pairs = [one for one in given or () if isinstance(one, list) and one]
    return {one[0] for one in pairs if isinstance(one[0], str) and _SHA256.fullmatch(one[0])}


def _descriptions(store: Store, last: Success | None) -> list[Finding]:
    """What is wrong with what the rounds say of themselves: their rows are the manifest's."""
    try:
        segments = rounds.segments(store)
        begun = rounds.open_round(store)
    except SpecError:  # of an earlier version, which says of its items alone what they are
        return []
    except StoreError as error:
        return [(store.uri(rounds.key_of(0)), str(error))]
    if last is None or not segments or (begun is not None and begun[1] == APPEND):
        return []
    said, there = sum(segment.rows for segment in segments), last.rows + last.failed
    if said == there:
        return []
    problem = f"and the rounds after it say {said} rows, the manifest {there}: one was removed"
    return [(store.uri(rounds.key_of(0)), problem)]


def expected_steps(store: Store) -> int:
    """How many lists `verify` will yield, where nothing is damaged."""
    keys = set(store.list(PARTS))
    expected = _expected_rounds(store)
    for retry_round in expected:
        data, problem = _fetch(store, Manifest(store, retry_round).success_key)
        if problem is None:
            try:
                success = Success.from_json(data)
            except ValueError:
                continue
            keys |= {key for key, _ in (*success.parts, *success.failures)}
    return len(keys) + len(expected)


def _expected_rounds(store: Store) -> list[int]:
    """The job, and the rounds that are finished or should be: appends, and those before others."""
    finished = manifest.retry_rounds(store)
    last = min(max(finished, default=0), len(finished) + 1)
    try:
        begun = rounds.documents(store)
    except StoreError:  # which `_descriptions` says
        begun = {}
    appends = {number for number, content in begun.items() if content["kind"] == APPEND}
    return sorted({0, *finished, *range(1, last), *appends})


def _verify_part(
    store: Store,
    key: str,
    sha256: str | None,
    share: float,
    steps: Mapping[str, int] | None,
    adapters: set[str],
) -> tuple[list[Finding], dict[str, int]]:
    """What is wrong in a part and with what its rows name, and how many rows of each status."""
    counts = {OK: 0, manifest.FAILED: 0}
    data, problem = _fetch(store, key, sha256)
    rows = []
    if problem is None:
        try:
            rows = manifest.read_rows(data)
        except ValueError as error:
            problem = str(error)
    findings: list[Finding] = [(_name(store, key), problem)]
    if problem is None:
        for row in rows:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        chosen = [row for row in rows if share >= 1 or random.random() < share]
        of_items: dict[str, list[tuple[Any, ...]]] = {}
        for row in rows:
            of_items.setdefault(row["item_id"], []).append(_own(row))
        here = Manifest(store, round_of(key) or 0)
        check = partial(_verify_row, here, steps, of_items, adapters)
        findings += [finding for found in at_once(check, chosen) for finding in found]
    return findings, counts


def _steps_by_schedule(store: Store) -> dict[str, int] | None:
    """How many steps each schedule is for, by its id, in a job that has one for each setting.

    None where one schedule, or none, serves all rows, and where job.json cannot be read.
    """
    try:
        schedules = rounds.specification(store)["schedules"]
        return {one["id"]: one["grid"]["num_inference_steps"] for one in schedules}
    except (StoreError, *UNREADABLE):
        return None


def _own(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows of one item differ in."""
    return tuple(row[name] for name in OF_THE_ROW)


def _verify_row(
    here: Manifest,
    steps: Mapping[str, int] | None,
    of_items: Mapping[str, list[tuple[Any, ...]]],
    adapters: set[str],
    row: Mapping[str, Any],
) -> list[Finding]:
    store = here.store
    receipt = here.receipt_key(row["shard"], row["item_id"])
    data, problem = _fetch(store, receipt)
    if problem is None:
        try:
            receipt_row = json.loads(data)
            adapters.update(_adapters(receipt_row.get("arguments")))
            (kept,) = to_table([receipt_row]).to_pylist()
            same = all(row.get(name) == value for name, value in kept.items() if name in _ITEMS)
            same = same and _own(kept) in of_items[row["item_id"]]
            problem = None if same else "is damaged: it contradicts the manifest"
        except (pa.ArrowException, *UNREADABLE):
            problem = "is damaged: not a receipt"
    if problem is None and steps is not None:
        there, rendered = steps.get(row["schedule_id"]), row["num_inference_steps"]
        if there != rendered:
            what = "which job.json does not hold" if there is None else f"which is for {there}"
            problem = f"has {rendered} steps and names the schedule {row['schedule_id']}, {what}"
    findings: list[Finding] = [(store.uri(receipt), problem)]
    if row["status"] == OK:
        findings.append((_name(store, row["key"]), _fetch(store, row["key"], row["sha256"])[1]))
    if row.get("image_key") is not None:
        image = _fetch(store, row["image_key"], row["image_sha256"])[1]
        findings.append((_name(store, row["image_key"]), image))
    return findings


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
