"""A store in a bucket of any S3 that honours conditional puts; boto3 for every byte."""

from __future__ import annotations

import base64
import hashlib
import logging
import mimetypes
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError

from cluster.store.base import (
    MissingKey,
    Store,
    StoreError,
    check_key,
    check_prefix,
    is_key,
    probe,
    without_secrets,
)

_TRUNCATED = (
    FlexibleChecksumError,
    HTTPError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)


class S3Store(Store):
    """Objects under `s3://bucket/prefix` of any S3 that honours conditional puts.

    `patient=False` gives up on a silent or absent endpoint after seconds instead of minutes. Only
    bucket, prefix and patience are pickled; each process makes its own client when it first needs
    one.
    """

    def __init__(self, bucket: str, prefix: str = "", *, patient: bool = True) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._patient = patient
        self._client: tuple[int, Any] | None = None  # of the process with this id

    def __repr__(self) -> str:
        return f"S3Store({self._root!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def get(self, key: str) -> bytes:
        place = self._place(key)
        with self._explaining(key):
            for attempt in range(10 if self._patient else 3):
                answer = self._s3().get_object(**place)
                # botocore retries requests, but not a body that breaks off after its headers.
                with suppress(*_TRUNCATED):
                    data = answer["Body"].read()
                    if len(data) == answer.get("ContentLength", len(data)):
                        return data
                _back_off(attempt)
        raise StoreError(f"{self.uri(key)} broke off in every reading: check the network to S3")

    def put_new(self, key: str, data: bytes) -> bool:
        with self._explaining(key):
            for attempt in range(10):
                try:
                    self._put(key, data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    status = _status(error)
                    if status not in (409, 412):
                        raise
                # 412: there is an object, unless it was deleted since. 409: another writer is
                # busy with the key, which botocore does not retry.
                if status == 412:
                    with suppress(MissingKey):
                        return self._same_or_raise(key, data)
                _back_off(attempt)
        raise StoreError(f"{self.uri(key)} stayed in conflict with other writers: run it again")

    def put(self, key: str, data: bytes) -> None:
        with self._explaining(key):
            self._put(key, data)

    def _put(self, key: str, data: bytes, **condition: Any) -> None:
        place = self._place(key)
        self._s3().put_object(
            **place,
            Body=data,
            ContentMD5=base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            ContentType=mimetypes.guess_type(key)[0] or "application/octet-stream",
            **condition,
        )

    def exists(self, key: str) -> bool:
        place = self._place(key)
        try:
            with self._explaining(key):
                self._s3().head_object(**place)
        except MissingKey:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        return self._pages(prefix)

    def _pages(self, prefix: str) -> Iterator[str]:
        root = f"{self.prefix}/" if self.prefix else ""
        with self._explaining(prefix):
            pages = self._s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=root + prefix):
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(root)
                    if is_key(key):  # consoles put "folder/" objects beside ours
                        yield key

    def delete(self, key: str) -> None:
        place = self._place(key)
        with self._explaining(key):
            self._s3().delete_object(**place)

    def uri(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    def probe(self) -> None:
        probe(S3Store(self.bucket, self.prefix, patient=False))

    @property
    def _root(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _place(self, key: str) -> dict[str, str]:
        check_key(key)
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}

    def _s3(self) -> Any:
        """Return this process's client: safe to share between threads, never across a fork."""
        with _client_lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = os.getpid(), _make_client(self._patient)
            return self._client[1]

    @contextmanager
    def _explaining(self, key: str) -> Iterator[None]:
        """Turn botocore's errors into StoreErrors about `key`.

        The cause is cut off: botocore's errors carry key ids and, in redirects, signatures.
        """
        try:
            yield
        except ClientError as error:
            raise _explain_answer(error, f"{self._root}/{key}", self.bucket) from None
        except (BotoCoreError, HTTPError) as error:
            raise _explain_client(error, f"{self._root}/{key}") from None


_client_lock = threading.Lock()


def _renew_client_lock() -> None:
    """In a fork the lock may be held for ever, by a thread that was not copied."""
    global _client_lock
    _client_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_client_lock)


def _make_client(patient: bool) -> Any:
    """Make a client from the AWS_* environment as it is now."""
    botocore_log = logging.getLogger("botocore")
    if botocore_log.level < logging.INFO:  # at DEBUG it writes the key id and the session token
        botocore_log.setLevel(logging.WARNING)
    endpoint = _endpoint()
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 11 if patient else 3},
        connect_timeout=10 if patient else 5,
        read_timeout=60 if patient else 8,
        max_pool_connections=32,
        # Buckets of other endpoints seldom have host names of their own.
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Content-MD5 guards every upload; the trailing checksums of newer SDKs would add nothing
        # and keep out stores that do not know them, such as radosgw.
        request_checksum_calculation="when_required",
    )
    try:
        # A session of its own: the default one is shared, and not safe to share.
        return boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise StoreError(
            f"AWS_ENDPOINT_URL is {endpoint!r}, which is not a URL: give http(s)://host[:port]"
        ) from None


def _endpoint() -> str:
    """Return the endpoint the environment names, without any credentials in it, or ''."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return without_secrets(named)


_ANSWERS = {
    "AccessDenied": "access is denied: grant s3:GetObject, s3:PutObject and s3:ListBucket there",
    "ExpiredToken": "the credentials have expired: renew them",
    "InvalidAccessKeyId": "the endpoint does not know this access key: check AWS_ACCESS_KEY_ID",
    "InvalidToken": "the session token is not valid: renew AWS_SESSION_TOKEN",
    "NotImplemented": "the store lacks an operation we need (conditional puts?): use another",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "SignatureDoesNotMatch": "the secret key is not this access key's: check AWS_SECRET_ACCESS_KEY",
}


def _explain_answer(error: ClientError, uri: str, bucket: str) -> StoreError:
    """Say in a sentence what the store's refusal means."""
    code = error.response.get("Error", {}).get("Code", "")
    status = _status(error)
    if code == "NoSuchBucket":
        where = _endpoint() or "AWS"
        return StoreError(
            f"bucket {bucket!r} does not exist at {where}: create it or correct the s3:// root"
        )
    if status == 404:
        return MissingKey(f"there is no object {uri}: check the key")
    if status == 403:  # the answer to HEAD has a status and no code
        return StoreError(f"{uri} was refused, {_ANSWERS.get(code, _ANSWERS['AccessDenied'])}")
    if code in _ANSWERS:
        return StoreError(f"{uri} was refused, {_ANSWERS[code]}")
    if status == 301 or code == "AuthorizationHeaderMalformed":
        return StoreError(f"{uri} is in another region: set AWS_DEFAULT_REGION to the bucket's")
    fix = "try again later" if status >= 500 or status == 429 else "check the store's documentation"
    return StoreError(f"{uri} failed, the store answers {status} {code}: {fix}")


def _explain_client(error: Exception, uri: str) -> StoreError:
    """Say in a sentence why no answer came."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return StoreError(
            f"no credentials were found for {uri}: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, ProfileNotFound):
        return StoreError(
            f"AWS_PROFILE is {os.environ.get('AWS_PROFILE')!r}, which the AWS configuration files "
            "lack: correct it"
        )
    if isinstance(error, NoConnectionError | HTTPClientError | HTTPError):
        where = _endpoint() or "the AWS endpoint"
        return StoreError(
            f"{where} cannot be reached for {uri} ({type(error).__name__}): check AWS_ENDPOINT_URL "
            "and the network"
        )
    return StoreError(
        f"{uri} failed in the S3 client ({type(error).__name__}): check the AWS_* settings"
    )


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key/` into bucket and key, both checked."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket or not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
        raise StoreError(
            f"{without_secrets(uri)!r} names no bucket: write s3://bucket/prefix, with the "
            "endpoint and credentials in the AWS_* environment"
        )
    key = key.removesuffix("/")
    check_prefix(key)
    return bucket, key


def _back_off(attempt: int) -> None:
    """Wait a random time that grows with the attempts, 5 s at most."""
    time.sleep(random.uniform(0, min(0.1 * 2**attempt, 5)))
