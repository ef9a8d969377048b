"""What every store promises, and which keys it takes."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"  # names that begin so are local files in the making: never keys


UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")  # control, backslash, lone surrogate


class StoreError(Exception):
    """What went wrong with a store, in one sentence: the value, the rule and the fix."""

    __str__ = Exception.__str__  # KeyError, a base of MissingKey, would quote the sentence


class MissingKey(StoreError, KeyError):  # noqa: N818
    """There is no object under this key."""


class AlreadyExists(StoreError):  # noqa: N818
    """There is an object with other bytes under a key that may be written only once."""


class TooLarge(StoreError):  # noqa: N818
    """An object has more bytes than its reader takes."""

    @classmethod
    def than(cls, most: int, name: str, size: int) -> TooLarge:
        return cls(f"{name} has {size} bytes, of which {most} are the most: make it smaller")


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it: its size, and the seconds since the epoch of its writing."""

    key: str
    bytes: int
    modified: float


class Store(ABC):
    """Immutable and replaceable objects under one root.

    Keys are relative paths such as `videos/ab/ab12.mp4`. Every method that takes a key raises
    StoreError when the key is absolute, has an empty, `.` or `..` segment, a segment above 255
    bytes or one that begins with `.tmp-`, a backslash or a control character; and when the store
    cannot be reached, written or read. Stores may be shared by threads and pickled to processes.

    Attributes:
        retries: how many requests were repeated through this object; a copy begins with none.
    """

    retries = 0

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object; raise MissingKey where there is none."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object once, whole and durable.

        Returns True if this call created it and False if the same bytes were already there, which
        is also what a repeated request finds after its first answer was lost on the way. Raises
        AlreadyExists if other bytes are there.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object; readers see the old bytes or the new, never a mixture."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Tell whether there is an object under the key."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in the order of their UTF-8 bytes."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield what `list` does with sizes and ages, at the price of a list: 1000 a request."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object, if there is one.

        For `probe`, and for garbage that nothing names: nothing committed is ever deleted.
        """

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return the absolute path or the uri of a key, whether or not it exists."""

    @abstractmethod
    def probe(self) -> None:
        """Check that the root is reachable, writable and refuses to overwrite; leave no object.

        Raises StoreError, within seconds, where it is not so.
        """

    def _same_or_raise(self, key: str, data: bytes) -> bool:
        """Return False if the object equals `data`, which `put_new` found in its way."""
        held = self.get(key)
        if held != data:
            raise AlreadyExists(
                f"{self.uri(key)} already holds other bytes ({_fingerprint(held)}; offered were "
                f"{_fingerprint(data)}) and is never overwritten: use another root or key"
            )
        return False


def probe(store: Store) -> None:
    """Put one object twice, see the second refused, and see the first in a list."""
    key = f".probe-{secrets.token_hex(8)}"  # its own: two jobs may start at the same time
    store.put_new(key, b"first")
    try:
        with suppress(AlreadyExists):
            store.put_new(key, b"second")
            raise StoreError(
                f"{store!r} cannot be used because it ignores conditional puts (If-None-Match) "
                "and so would overwrite finished work: use AWS S3, MinIO, Ceph, Google Cloud "
                "Storage, Azure or another store that honours them"
            )
        if store.get(key) != b"first":
            raise StoreError(f"{store!r} returned other bytes than were put: use another store")
        if list(store.list(key)) != [key]:
            raise StoreError(
                f"{store!r} does not list an object that was put there: use a store whose lists "
                "show at once what is there"
            )
    finally:
        try:
            store.delete(key)
        except StoreError as error:  # write-once buckets forbid it, and serve us well
            log.warning("the probe's object stays behind: %s", error)


def _flaw(key: str) -> str | None:
    """Return what makes a string no key, or None."""
    if found := UNSAFE.search(key):
        return f"has the character {found[0]!r}"
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            return f"has the segment {segment!r}"
        if segment.startswith(TEMPORARY):
            return f"has a segment that begins with {TEMPORARY!r}"
        if len(segment.encode()) > 255:
            return "has a segment above 255 bytes"
    return None


def is_key(key: str) -> bool:
    return _flaw(key) is None


def check_key(key: str) -> None:
    if flaw := _flaw(key):
        raise StoreError(
            f"key {short(key)} {flaw}: use a relative path of plain names like 'a/b.json'"
        )


def check_prefix(prefix: str) -> None:
    if prefix:
        check_key(prefix.removesuffix("/"))


def without_secrets(url: str) -> str:
    """Cut a URL's user information and query, where credentials and signatures would be."""
    return re.sub(r"(//|^).*@", r"\1", url.partition("?")[0])


def short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _fingerprint(data: bytes) -> str:
    return f"{len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()[:16]}"


# What a bucket is called there, and where its endpoint and credentials come from.
SCHEMES = {
    "s3": ("bucket", "endpoint and credentials in the AWS_* environment"),
    "gs": ("bucket", "credentials where Google's libraries find them"),
    "az": ("container", "account and credentials in the AZURE_STORAGE_* environment"),
}


def is_remote(uri: str) -> bool:
    """Tell whether an address is of a store behind a network, well-formed or not."""
    return uri.partition(":")[0] in SCHEMES and ":" in uri


def split_uri(uri: str) -> tuple[str, str, str]:
    """Split `s3://bucket/key/` into scheme, bucket and key, all checked."""
    scheme = uri.partition(":")[0]
    called, credentials = SCHEMES[scheme]
    bucket, _, key = uri.removeprefix(f"{scheme}://").partition("/")
    if "@" in bucket or ":" in bucket or not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
        raise StoreError(
            f"{without_secrets(uri)!r} names no {called}: write {scheme}://{called}/prefix, with "
            f"the {credentials}"
        )
    key = key.removesuffix("/")
    check_prefix(key)
    return scheme, bucket, key
