"""Objects under a root: a local directory or a bucket, behind one small class.

Knows bytes and keys; knows nothing of videos, receipts or manifests. The one promise the rest of
`cluster` builds on is `Store.put_new`: of any number of writers racing for a key exactly one
creates it, whole, and nobody ever overwrites it. `Store.probe` refuses, before any money is spent,
a store that does not keep that promise. Networks and stores that misbehave cost repetitions, for
about a minute, and then a StoreError: bytes damaged on their way are neither stored nor returned.

A bucket is `s3://bucket/prefix`, `gs://bucket/prefix` (Google Cloud Storage; pip install
'meancache-ray[gs]') or `az://container/prefix` (Azure Blob Storage; 'meancache-ray[az]'). Endpoints
and credentials come from the standard environment of each alone (AWS_*; what Google's libraries
find; AZURE_STORAGE_*). They are read in each process that talks to a store and are never part of a
pickle, a repr or a message.

    store = open_store("s3://bucket/run-1")
    store.probe()
    store.put_new("receipts/000000/ab12.json", b"{}")     # True: this call created it
    store.put_new("receipts/000000/ab12.json", b"{}")     # False: the same bytes are there
    store.put_new("receipts/000000/ab12.json", b"[]")     # raises AlreadyExists
"""

from __future__ import annotations

from importlib import import_module

from cluster.store.base import (
    SCHEMES,
    AlreadyExists,
    Entry,
    MissingKey,
    Store,
    StoreError,
    TooLarge,
    is_remote,
    split_uri,
)
from cluster.store.local import LocalStore, local_path, read_file
from cluster.store.remote import RemoteStore

__all__ = [
    "AlreadyExists",
    "Entry",
    "LocalStore",
    "MissingKey",
    "Store",
    "StoreError",
    "TooLarge",
    "is_remote",
    "local_path",
    "open_store",
    "read",
    "split_uri",
]


# By scheme: the module that knows it, its class, and the package that its extra brings.
_STORES = {
    "s3": ("cluster.store.s3", "S3Store", "botocore"),
    "gs": ("cluster.store.gs", "GoogleStore", "google-cloud-storage"),
    "az": ("cluster.store.az", "AzureStore", "azure-storage-blob"),
}


def open_store(root: str) -> Store:
    """Return the store at a local directory (created when first written) or in a bucket.

    Raises StoreError if `root` is malformed, is a file, or is of a kind whose client is not
    installed. Touches no network: `Store.probe` does.
    """
    if not is_remote(root):
        return LocalStore(local_path(root))
    scheme, bucket, prefix = split_uri(root)
    return _remote(scheme)(bucket, prefix)


def read(uri: str, most: int | None = None) -> bytes:
    """Return the bytes of one file, given as a local path or the uri of an object.

    Raises MissingKey where there is none, TooLarge where it has more than `most` bytes, and
    StoreError where it cannot be read.
    """
    if not is_remote(uri):
        return read_file(local_path(uri), most)
    scheme, bucket, key = split_uri(uri)
    if not key:
        called = SCHEMES[scheme][0]
        raise StoreError(
            f"{uri!r} names a {called}, not a file: give {scheme}://{called}/path/to/file"
        )
    return _remote(scheme)(bucket, patient=False).get(key, most)


def _remote(scheme: str) -> type[RemoteStore]:
    """Return the class of a scheme, with its client. Raises StoreError where that is missing."""
    module, name, package = _STORES[scheme]
    try:
        found: type[RemoteStore] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{scheme}:// needs {package}, which is not installed ({error.name} is missing): pip "
            f"install 'meancache-ray[{scheme}]', on every node too"
        ) from None
    return found
