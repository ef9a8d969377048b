"""A store in a bucket of any S3 that honours conditional puts; boto3's client for every byte.

S3's protocol guards less than it seems to: over plain HTTP a flipped bit in a body, or a body cut
short, is found only by a checksum. Uploads carry Content-MD5; objects carry the sha256 of their
bytes as metadata, which every reading is compared with. Lists have no checksum: their pages are
checked for being whole, and only TLS keeps the letters of their keys.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import mimetypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from cluster.store import s3_client
from cluster.store.base import (
    Entry,
    MissingKey,
    Store,
    StoreError,
    TooLarge,
    check_key,
    check_prefix,
    is_key,
    probe,
)
from cluster.store.s3_errors import EXPECTED, Again, Damaged, code_of, judge, status_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_CREDENTIAL_READINGS = 3  # besides the first: enough to outlast a file being rewritten


class S3Store(Store):
    """Objects under `s3://bucket/prefix` of any S3 that honours conditional puts.

    `patient=False` gives up on a silent or absent endpoint after seconds instead of minutes. Only
    bucket, prefix and patience are pickled; each process makes its own client when it first needs
    one, and another when its credentials are refused: they may have been renewed.
    """

    def __init__(self, bucket: str, prefix: str = "", *, patient: bool = True) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._patient = patient
        self._client: tuple[int, Any] | None = None  # of the process with this id

    def __repr__(self) -> str:
        return f"S3Store({self._root!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "retries": 0}

    def get(self, key: str, most: int | None = None) -> bytes:
        place = self._place(key)

        def read_whole(client: Any) -> bytes:
            answer = client.get_object(**place)
            if most is not None and answer["ContentLength"] > most:
                raise TooLarge.than(most, self.uri(key), answer["ContentLength"])
            data: bytes = answer["Body"].read()  # raises if it has not the announced length
            stored = answer.get("Metadata", {}).get("sha256", "")
            if re.fullmatch("[0-9a-f]{64}", stored) and hashlib.sha256(data).hexdigest() != stored:
                raise Damaged(
                    f"never has the sha256 {stored[:16]}... that it was stored with: check the "
                    "network to S3, or delete the object if it is damaged there"
                )
            return data

        return self._ask(key, read_whole)

    def put_new(self, key: str, data: bytes) -> bool:
        request = self._upload(key, data) | {"IfNoneMatch": "*"}

        def create(client: Any) -> bool:
            try:
                client.put_object(**request)
            except ClientError as error:
                if status_of(error) == 412:
                    return False
                raise
            return True

        for _ in range(10):
            if self._ask(key, create):
                return True
            with suppress(MissingKey):  # it was in the way, and has been deleted since
                return self._same_or_raise(key, data)
        raise StoreError(f"{self.uri(key)} is created and deleted all the time: use another root")

    def put(self, key: str, data: bytes) -> None:
        request = self._upload(key, data)
        self._ask(key, lambda client: client.put_object(**request))

    def _upload(self, key: str, data: bytes) -> dict[str, Any]:
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        return (
            self._place(key)
            | s3_client.for_uploads()
            | {
                "Body": data,
                "ContentMD5": base64.b64encode(md5).decode(),
                "ContentType": mimetypes.guess_type(key)[0] or "application/octet-stream",
                "Metadata": {"sha256": hashlib.sha256(data).hexdigest()},
            }
        )

    def exists(self, key: str) -> bool:
        place = self._place(key)

        def head(client: Any) -> None:
            try:
                client.head_object(**place)
            except ClientError as error:
                if status_of(error) in (400, 403):  # HEAD has no body to say why: a list has
                    payer = s3_client.for_every_request()
                    prefix = place["Key"]
                    client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1, **payer)
                raise

        try:
            self._ask(key, head)
        except MissingKey:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        return self._entries(prefix)

    def _entries(self, prefix: str) -> Iterator[Entry]:
        root = f"{self.prefix}/" if self.prefix else ""
        request = {"Bucket": self.bucket, "Prefix": root + prefix} | s3_client.for_every_request()
        counts_all = False
        while True:
            page = self._ask(prefix, partial(_whole_page, request, counts_all))
            entries = page.get("Contents", [])
            for found in entries:
                key = found["Key"].removeprefix(root)
                if is_key(key):  # consoles put "folder/" objects beside ours
                    yield Entry(key, found["Size"], found["LastModified"].timestamp())
            if not page["IsTruncated"]:
                return
            counts_all = counts_all or page.get("KeyCount", 0) > len(entries)
            request.pop("ContinuationToken", None)
            if page.get("NextContinuationToken"):
                request["ContinuationToken"] = page["NextContinuationToken"]
            else:  # some servers give none, or an empty one
                request["StartAfter"] = entries[-1]["Key"]

    def delete(self, key: str) -> None:
        place = self._place(key)
        self._ask(key, lambda client: client.delete_object(**place))

    def uri(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    def probe(self) -> None:
        probe(S3Store(self.bucket, self.prefix, patient=False))

    @property
    def _root(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _place(self, key: str) -> dict[str, Any]:
        check_key(key)
        place = {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}
        return place | s3_client.for_every_request()

    def _ask(self, key: str, request: Callable[[Any], T]) -> T:
        """Return what `request` makes of a client, asking again while that can help.

        All that is asked here may be asked twice: a create that succeeded unheard meets its own
        bytes. Raises StoreError, outside of any `except`: botocore's errors carry key ids, and
        would come along as its context.
        """
        patience = s3_client.PATIENT if self._patient else s3_client.HASTY
        renewals = 0
        for attempt in range(patience.attempts):
            client = None
            try:
                client = self._s3()
                return request(client)
            except EXPECTED as error:
                decision = judge(error, f"{self._root}/{key}", self.bucket)
            if decision.again is Again.NO:
                break
            if decision.again is Again.WITH_FRESH_CREDENTIALS:
                self._forget(client)
                renewals += 1
                if renewals > _CREDENTIAL_READINGS:
                    break
            if attempt + 1 < patience.attempts:
                level = logging.INFO if attempt < 6 else logging.WARNING  # some seconds in
                log.log(level, "attempt %d failed and is repeated: %s", attempt + 1, decision.error)
                with _client_lock:
                    self.retries += 1
                patience.wait(attempt)
        raise decision.error

    def _s3(self) -> Any:
        """Return this process's client: safe to share between threads, never across a fork."""
        s3_client.quieten()
        with _client_lock:
            if self._client is None or self._client[0] != os.getpid():
                patience = s3_client.PATIENT if self._patient else s3_client.HASTY
                self._client = os.getpid(), s3_client.make_client(patience)
            return self._client[1]

    def _forget(self, client: Any) -> None:
        """Have the next request make a new client, unless another thread already did."""
        with _client_lock:
            if self._client is not None and self._client[1] is client:
                self._client = None


_client_lock = threading.Lock()


def _renew_client_lock() -> None:
    """In a fork the lock may be held for ever, by a thread that was not copied."""
    global _client_lock
    _client_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_client_lock)


def _whole_page(request: dict[str, str], counts_all: bool, client: Any) -> dict[str, Any]:
    """Return a page of a list; raise Damaged where anything says that keys are missing from it.

    Args:
        request: the list's.
        counts_all: KeyCount is known to be that of all pages, as some servers have it.
        client: of the store.
    """
    try:
        page: dict[str, Any] = client.list_objects_v2(**request)
        found = page.get("Contents", [])
        length = len(found) + len(page.get("CommonPrefixes", []))
        count = page.get("KeyCount", length)
        # A page as long as a page can be lacks none, though there are more.
        full = bool(page["IsTruncated"]) and length == page.get("MaxKeys")
        whole = (
            (length == count or counts_all or (full and count > length))
            # A mangled "true" reads as false, and an empty answer as a list of nothing.
            and (page["IsTruncated"] or not page.get("NextContinuationToken"))
            and (found or not page["IsTruncated"])
            and all(entry["Key"].startswith(request["Prefix"]) for entry in found)
            and all(entry["Size"] >= 0 and entry["LastModified"].timestamp() for entry in found)
        )
    except (ArithmeticError, LookupError, ValueError):  # numbers and times that are none
        whole = False
    except ClientError as error:
        if status_of(error) != 500 or code_of(error):
            raise
        whole = False  # botocore makes this of XML that it cannot read
    if not whole:
        raise Damaged("was listed with damaged XML in every reading: check the network to S3")
    return page
