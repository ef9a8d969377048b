"""A finished job's rows as tables, for whoever reads them all: exports, reports, replays.

Reads the parts that `_SUCCESS` names and trusts nothing in them that has another sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.results import manifest
from cluster.results.manifest import REQUESTS_AT_ONCE, Success, at_once
from cluster.results.parts import without_extra
from cluster.store import Store, StoreError


def read_checked(store: Store, key: str, sha256: str) -> bytes:
    """An object that is the one that the manifest names.

    Raises:
        MissingKey: there is none.
        StoreError: it has another sha256.
    """
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(
            f"{store.uri(key)} is damaged: its {len(data)} bytes do not have the sha256 of the "
            "manifest; see jobs.verify"
        )
    return data


def read_table(store: Store, key: str, data: bytes) -> pa.Table:
    """The rows of a part whose bytes are at hand.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return manifest.read_table(data)
    except ValueError as error:
        raise StoreError(f"{store.uri(key)} is damaged: {error}; see jobs.verify") from error


def read_parts(store: Store, success: Success) -> Iterator[pa.Table]:
    """The parts of a finished job, retry rounds included, one by one, of `manifest.SCHEMA`.

    Raises:
        StoreError: one is missing or damaged.
    """
    for first in range(0, len(success.parts), REQUESTS_AT_ONCE):
        some = success.parts[first : first + REQUESTS_AT_ONCE]
        yield from at_once(partial(_read_part, store), some)


def search(store: Store, item_id: str, keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """The row of an item, or None, of each of these parts, one by one.

    Raises:
        StoreError: one is damaged.
    """

    def row(key: str) -> dict[str, Any] | None:
        table = read_table(store, key, store.get(key))
        found = without_extra(table.filter(pc.field("item_id") == item_id)).to_pylist()
        return found[0] if found else None

    for first in range(0, len(keys), REQUESTS_AT_ONCE):
        yield from at_once(row, keys[first : first + REQUESTS_AT_ONCE])


def flattened(parts: Iterable[pa.Table]) -> pa.Table:
    """One table of parts, or of some of their columns; null where a part lacks a metric."""
    return pa.concat_tables(parts, promote_options="default")


def _read_part(store: Store, part: tuple[str, str]) -> pa.Table:
    return read_table(store, part[0], read_checked(store, *part))
