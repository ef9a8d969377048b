"""A store in a bucket of Google Cloud Storage, by google-cloud-storage's client for every byte.

A conditional put is an upload for which no generation of the object may exist. Uploads and
downloads are compared with their CRC32C by the client. Credentials are found as Google's libraries
do: GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, or those of the machine. STORAGE_EMULATOR_HOST
names another endpoint, which is asked without any.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, NotFound, PreconditionFailed
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.auth.exceptions import TransportError as NoAnswerError
from google.cloud.storage import Client
from google.cloud.storage import blob as google_blob
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from requests.exceptions import ConnectionError as NoConnectionError
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema, RequestException, SSLError

from cluster.store.base import (
    Entry,
    MissingKey,
    StoreError,
    TooLarge,
    is_key,
    without_secrets,
)
from cluster.store.remote import Again, Damaged, Decision, RemoteStore

PAGE = 1000  # keys in an answer to a list
# The client would upload more than 8 MiB in a session of several requests; one is atomic, and its
# condition is looked at once.
google_blob._MAX_MULTIPART_SIZE = 2**40
_FIELDS = "items(name,size,updated),nextPageToken"


class GoogleStore(RemoteStore):
    """Objects under `gs://bucket/prefix`."""

    scheme = "gs"
    expected = (
        *(GoogleAPICallError, GoogleAuthError, InvalidResponse, DataCorruption),
        *(RequestException, Damaged, OSError),
    )
    telltales = ("google", "urllib3")  # of tokens, and of what requests are signed with

    def get(self, key: str, most: int | None = None) -> bytes:
        name = self._name(key)

        def read_whole(client: Any) -> bytes:
            blob = self._blob(client, name)
            if most is not None:
                blob.reload(**self._alone)
                if blob.size > most:
                    raise TooLarge.than(most, self.uri(key), blob.size)
            data: bytes = blob.download_as_bytes(checksum="crc32c", **self._alone)
            return data

        return self._ask(key, read_whole)

    def _creation(self, key: str, data: bytes) -> Callable[[Any], bool]:
        upload = self._upload(key, data)

        def create(client: Any) -> bool:
            try:
                upload(client, if_generation_match=0)
            except PreconditionFailed:
                return False
            return True

        return create

    def put(self, key: str, data: bytes) -> None:
        self._ask(key, self._upload(key, data))

    def _upload(self, key: str, data: bytes) -> Callable[..., None]:
        name = self._name(key)
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"

        def upload(client: Any, **conditions: int) -> None:
            blob = self._blob(client, name)
            try:
                blob.upload_from_string(
                    data, content_type=kind, checksum="crc32c", **conditions, **self._alone
                )
            except NotFound:
                raise _no_bucket(self.bucket) from None

        return upload

    def _look(self, key: str) -> Callable[[Any], Any]:
        name = self._name(key)
        return lambda client: self._blob(client, name).reload(**self._alone)

    def _entries(self, prefix: str) -> Iterator[Entry]:
        token = None
        while True:
            found, token = self._ask(prefix, partial(self._page, prefix, token))
            for blob in found:
                key = blob.name.removeprefix(self._folder)
                if is_key(key):  # consoles put "folder/" objects beside ours
                    yield Entry(key, blob.size, blob.updated.timestamp())
            if not token:
                return

    def _page(self, prefix: str, token: str | None, client: Any) -> tuple[list[Any], str | None]:
        asked = {"prefix": self._folder + prefix, "page_size": PAGE, "page_token": token}
        pages = client.list_blobs(self.bucket, fields=_FIELDS, **asked, **self._alone)
        try:
            page = next(pages.pages, ())
        except NotFound:
            raise _no_bucket(self.bucket) from None
        return list(page), pages.next_page_token

    def delete(self, key: str) -> None:
        name = self._name(key)
        try:
            self._ask(key, lambda client: self._blob(client, name).delete(**self._alone))
        except MissingKey:
            return

    def _blob(self, client: Any, name: str) -> Any:
        return client.bucket(self.bucket).blob(name)

    @property
    def _alone(self) -> dict[str, Any]:
        """The options of every request: the client does not repeat it, as the store does."""
        patience = self._patience
        return {"retry": None, "timeout": (patience.connect_timeout, patience.read_timeout)}

    def _new_client(self) -> Any:
        return Client(project=None)

    def _judge(self, error: Exception, uri: str) -> Decision:
        if isinstance(error, _NoBucket):
            return Decision(StoreError(str(error)))
        if isinstance(error, InvalidResponse | GoogleAPICallError):
            return _judge_answer(error, uri, self.bucket)
        if isinstance(error, DataCorruption | Damaged):
            said = f"{uri} was damaged on its way in every attempt: check the network to Google"
            return Decision(StoreError(said), Again.LATER)
        if isinstance(error, GoogleAuthError):
            return _judge_credentials(error, uri)
        return _judge_network(error, uri)


class _NoBucket(Damaged):
    """What a missing bucket is to whom it was expected of; no answer is repeated for it."""


def _no_bucket(bucket: str) -> _NoBucket:
    return _NoBucket(
        f"bucket {bucket!r} does not exist at {_endpoint()}: create it or correct the gs:// root"
    )


def _endpoint() -> str:
    named = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return without_secrets(named) or "Google Cloud Storage"


# What a status means that only people can mend, by what the answer says.
_REFUSALS = (
    (
        "userProject|requester pays",
        "its requester pays, which is not supported: use another one",
    ),
    ("quota", "the project's quota is used up: raise it, or use another bucket"),
    ("billing|account.*(disabled|closed)", "the project's billing is disabled: ask who owns it"),
    ("[Rr]etention|under active.*hold", "a retention policy forbids it: use another root"),
)


def _judge_answer(error: Any, uri: str, bucket: str) -> Decision:
    """Say what a status other than 2xx means."""
    answer = getattr(error, "response", None)
    status = int(getattr(error, "code", None) or getattr(answer, "status_code", None) or 0)
    # What is quoted names the request's address, and so keys and buckets.
    text = re.sub(r"https?://\S+", "", str(error)).replace(bucket, "")
    if status == 404:
        if re.search("bucket does not exist", text):
            return Decision(StoreError(str(_no_bucket(bucket))))
        return Decision(MissingKey(f"there is no object {uri}: check the key"))
    if status == 401:
        return Decision(
            StoreError(
                f"{uri} was refused, the credentials are not valid: renew them (gcloud auth "
                "application-default login), or check GOOGLE_APPLICATION_CREDENTIALS"
            ),
            Again.WITH_FRESH_CREDENTIALS,
        )
    if status in (400, 403):
        for pattern, said in _REFUSALS:
            if re.search(pattern, text):
                return Decision(StoreError(f"{uri} was refused, {said}"))
    if status == 403:
        return Decision(
            StoreError(
                f"{uri} was refused, access is denied: grant roles/storage.objectUser on the bucket"
            )
        )
    passing = status in (408, 409, 429) or (status >= 500 and status != 501)
    fix = "try again later" if passing else "check the store's documentation"
    return Decision(
        StoreError(f"{uri} failed, the store answers {status}: {fix}"),
        Again.LATER if passing else Again.NO,
    )


def _judge_credentials(error: GoogleAuthError, uri: str) -> Decision:
    if isinstance(error, NoAnswerError):
        said = f"Google's tokens cannot be reached, needed for {uri}: check the network"
        return Decision(StoreError(said), Again.LATER)
    if isinstance(error, DefaultCredentialsError):
        said = (
            f"no credentials were found for {uri}: set GOOGLE_APPLICATION_CREDENTIALS to a key "
            "file, or run gcloud auth application-default login"
        )
    elif isinstance(error, RefreshError):
        said = (
            f"{uri} was refused, the credentials have expired or were revoked: renew them (gcloud "
            "auth application-default login)"
        )
    else:
        said = (
            f"{uri} failed over the credentials ({type(error).__name__}): check "
            "GOOGLE_APPLICATION_CREDENTIALS"
        )
    return Decision(StoreError(said), Again.WITH_FRESH_CREDENTIALS)


def _judge_network(error: Exception, uri: str) -> Decision:
    """Say why no answer came."""
    where = _endpoint()
    if isinstance(error, MissingSchema | InvalidSchema | InvalidURL):
        said = f"STORAGE_EMULATOR_HOST is {where!r}, which is not a URL: give http(s)://host[:port]"
        return Decision(StoreError(said))
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        said = (
            f"the certificate of {where} is not trusted, needed for {uri}: set REQUESTS_CA_BUNDLE "
            "to a file with the certificate of the authority that signed it"
        )
        return Decision(StoreError(said))
    broke = "broke off" if not isinstance(error, NoConnectionError) else "cannot be reached"
    said = f"{where} {broke} for {uri} ({type(error).__name__}): check the network"
    return Decision(StoreError(said), Again.LATER)
