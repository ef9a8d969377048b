"""Objects under a root: a local directory or an `s3://bucket/prefix`, behind one small class.

Knows bytes and keys; knows nothing of videos, receipts or manifests. The one promise the rest of
`cluster` builds on is `Store.put_new`: of any number of writers racing for a key exactly one
creates it, whole, and nobody ever overwrites it. `Store.probe` refuses, before any money is spent,
a store that does not keep that promise. Networks and stores that misbehave cost repetitions, for
about a minute, and then a StoreError: bytes damaged on their way are neither stored nor returned.

S3 endpoints and credentials come from the standard AWS_* environment alone (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_PROFILE, ...). They are read in each process that talks to S3 and are never
part of a pickle, a repr or a message.

    store = open_store("s3://bucket/run-1")
    store.probe()
    store.put_new("receipts/000000/ab12.json", b"{}")     # True: this call created it
    store.put_new("receipts/000000/ab12.json", b"{}")     # False: the same bytes are there
    store.put_new("receipts/000000/ab12.json", b"[]")     # raises AlreadyExists
"""

from __future__ import annotations

from cluster.store.base import (
    AlreadyExists,
    Entry,
    MissingKey,
    Store,
    StoreError,
    TooLarge,
    split_s3,
)
from cluster.store.local import LocalStore, local_path, read_file

__all__ = [
    "AlreadyExists",
    "Entry",
    "LocalStore",
    "MissingKey",
    "Store",
    "StoreError",
    "TooLarge",
    "local_path",
    "open_store",
    "read",
]


def open_store(root: str) -> Store:
    """Return the store at a local directory (created when first written) or an s3:// root.

    Raises StoreError if `root` is malformed or is a file. Touches no network: `Store.probe` does.
    """
    if root.startswith("s3:"):
        from cluster.store.s3 import S3Store  # with botocore

        bucket, prefix = split_s3(root)
        return S3Store(bucket, prefix)
    return LocalStore(local_path(root))


def read(uri: str, most: int | None = None) -> bytes:
    """Return the bytes of one file, given as a local path or an s3:// uri.

    Raises MissingKey where there is none, TooLarge where it has more than `most` bytes, and
    StoreError where it cannot be read.
    """
    if uri.startswith("s3:"):
        bucket, key = split_s3(uri)
        if not key:
            raise StoreError(f"{uri!r} names a bucket, not a file: give s3://bucket/path/to/file")
        from cluster.store.s3 import S3Store  # with botocore

        return S3Store(bucket, patient=False).get(key, most)
    return read_file(local_path(uri), most)
