"""A store in a bucket of any S3 that honours conditional puts; boto3's client for every byte.

S3's protocol guards less than it seems to: over plain HTTP a flipped bit in a body, or a body cut
short, is found only by a checksum. Uploads carry Content-MD5; objects carry the sha256 of their
bytes as metadata, which every reading is compared with. Lists have no checksum: their pages are
checked for being whole, and only TLS keeps the letters of their keys.
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from cluster.store import s3_client
from cluster.store.base import Entry, TooLarge, is_key
from cluster.store.remote import Damaged, Decision, RemoteStore, checked
from cluster.store.s3_errors import EXPECTED, code_of, judge, status_of


class S3Store(RemoteStore):
    """Objects under `s3://bucket/prefix` of any S3 that honours conditional puts."""

    scheme = "s3"
    expected = EXPECTED
    telltales = ("botocore",)  # of the key id and the session token

    def _new_client(self) -> Any:
        return s3_client.make_client(self._patience)

    def _judge(self, error: Exception, uri: str) -> Decision:
        return judge(error, uri, self.bucket)

    def get(self, key: str, most: int | None = None) -> bytes:
        place = self._place(key)

        def read_whole(client: Any) -> bytes:
            answer = client.get_object(**place)
            if most is not None and answer["ContentLength"] > most:
                raise TooLarge.than(most, self.uri(key), answer["ContentLength"])
            data: bytes = answer["Body"].read()  # raises if it has not the announced length
            stored = answer.get("Metadata", {}).get("sha256", "")
            return checked(data, stored, "S3")

        return self._ask(key, read_whole)

    def _creation(self, key: str, data: bytes) -> Callable[[Any], bool]:
        request = self._upload(key, data) | {"IfNoneMatch": "*"}

        def create(client: Any) -> bool:
            try:
                client.put_object(**request)
            except ClientError as error:
                if status_of(error) == 412:
                    return False
                raise
            return True

        return create

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

    def _look(self, key: str) -> Callable[[Any], Any]:
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

        return head

    def _entries(self, prefix: str) -> Iterator[Entry]:
        root = self._folder
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

    def _place(self, key: str) -> dict[str, Any]:
        place = {"Bucket": self.bucket, "Key": self._name(key)}
        return place | s3_client.for_every_request()


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
