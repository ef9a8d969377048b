"""Objects under a root: a local directory or an `s3://bucket/prefix`, behind one small class.

Knows bytes and keys; knows nothing of videos, receipts or manifests. The one promise the rest of
`cluster` builds on is `Store.put_new`: of any number of writers racing for a key exactly one
creates it, whole, and nobody ever overwrites it. `Store.probe` refuses, before any money is spent,
a store that does not keep that promise.

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

import base64
import errno
import hashlib
import logging
import mimetypes
import os
import random
import re
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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

log = logging.getLogger(__name__)

_TEMPORARY = ".tmp-"  # names that begin so are local files in the making: never keys
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")  # control, backslash, lone surrogate
_TRUNCATED = (
    FlexibleChecksumError,
    HTTPError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)


class StoreError(Exception):
    """What went wrong with a store, in one sentence: the value, the rule and the fix."""

    __str__ = Exception.__str__  # KeyError, a base of MissingKey, would quote the sentence


class MissingKey(StoreError, KeyError):  # noqa: N818
    """There is no object under this key."""


class AlreadyExists(StoreError):  # noqa: N818
    """There is an object with other bytes under a key that may be written only once."""


class Store(ABC):
    """Immutable and replaceable objects under one root.

    Keys are relative paths such as `videos/ab/ab12.mp4`. Every method that takes a key raises
    StoreError when the key is absolute, has an empty, `.` or `..` segment, a segment above 255
    bytes or one that begins with `.tmp-`, a backslash or a control character; and when the store
    cannot be reached, written or read. Stores may be shared by threads and pickled to processes.
    """

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
    def delete(self, key: str) -> None:
        """Remove an object, if there is one. For `probe`: nothing committed is ever deleted."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return the absolute path or s3:// uri of a key, whether or not it exists."""

    @abstractmethod
    def probe(self) -> None:
        """Check that the root is reachable, writable and refuses to overwrite; leave no object.

        Raises StoreError, within seconds, where it is not so. A local root is created.
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


def open_store(root: str) -> Store:
    """Return the store at a local directory (created when first written) or an s3:// root.

    Raises StoreError if `root` is malformed or is a file. Touches no network: `Store.probe` does.
    """
    if root.startswith("s3:"):
        bucket, prefix = _split_s3(root)
        return S3Store(bucket, prefix)
    return LocalStore(_local_path(root))


def read(uri: str) -> bytes:
    """Return the bytes of one file, given as a local path or an s3:// uri.

    Raises MissingKey where there is none and StoreError where it cannot be read.
    """
    if uri.startswith("s3:"):
        bucket, key = _split_s3(uri)
        if not key:
            raise StoreError(f"{uri!r} names a bucket, not a file: give s3://bucket/path/to/file")
        return S3Store(bucket, patient=False).get(key)
    return _read_file(_local_path(uri))


class LocalStore(Store):
    """Objects as files under a directory of a file system that has hard links.

    A write makes a hidden temporary file beside the final one, so a process killed at any moment
    leaves no partial object, at worst a `.tmp-*` file that no method shows. Those are not swept: a
    slow writer's file cannot be told from a dead one's. `list` follows no links to directories.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file, not a directory: give another root")

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def get(self, key: str) -> bytes:
        return _read_file(self._path(key))

    def put_new(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _explaining_os(path, "written"), _temporary_file(path, data) as temporary:
            try:
                os.link(temporary, path)
                created = True
            except FileExistsError:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
                created = False
            _sync_directory(path.parent)  # in both cases: the answer must outlive a power cut
        return created or self._same_or_raise(key, data)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _explaining_os(path, "written"), _temporary_file(path, data) as temporary:
            os.replace(temporary, path)
            _sync_directory(path.parent)

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _explaining_os(path, "looked up"):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        _check_prefix(prefix)
        folder, slash, start = prefix.rpartition("/")
        return self._walk(folder + slash, start)

    def _walk(self, folder: str, start: str) -> Iterator[str]:
        """Yield the keys under `folder` ('' or 'a/b/') whose next name begins with `start`."""
        path = self.root / folder
        with _explaining_os(path, "listed"):
            try:
                with os.scandir(path) as entries:
                    names = [e.name + "/" * e.is_dir(follow_symlinks=False) for e in entries]
            except (FileNotFoundError, NotADirectoryError):
                return
        # With its slash a directory sorts where its keys belong: "a-b" before "a/b" before "a0".
        for name in sorted(name for name in names if name.startswith(start)):
            if name.endswith("/"):
                yield from self._walk(folder + name, "")
            elif _is_key(folder + name) and (path / name).is_file():
                yield folder + name

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _explaining_os(path, "deleted"), suppress(FileNotFoundError):
            path.unlink()

    def uri(self, key: str) -> str:
        return str(self._path(key))

    def probe(self) -> None:
        with _explaining_os(self.root, "created"):
            _make_directory(self.root)
        _probe(self)

    def _path(self, key: str) -> Path:
        _check_key(key)
        return self.root / key


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
        _check_prefix(prefix)
        return self._pages(prefix)

    def _pages(self, prefix: str) -> Iterator[str]:
        root = f"{self.prefix}/" if self.prefix else ""
        with self._explaining(prefix):
            pages = self._s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=root + prefix):
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(root)
                    if _is_key(key):  # consoles put "folder/" objects beside ours
                        yield key

    def delete(self, key: str) -> None:
        place = self._place(key)
        with self._explaining(key):
            self._s3().delete_object(**place)

    def uri(self, key: str) -> str:
        _check_key(key)
        return f"{self._root}/{key}"

    def probe(self) -> None:
        _probe(S3Store(self.bucket, self.prefix, patient=False))

    @property
    def _root(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _place(self, key: str) -> dict[str, str]:
        _check_key(key)
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
    return _without_secrets(named)


def _probe(store: Store) -> None:
    """Put one object twice, with different bytes, and see the second refused."""
    key = f".probe-{secrets.token_hex(8)}"  # its own: two jobs may start at the same time
    store.put_new(key, b"first")
    try:
        with suppress(AlreadyExists):
            store.put_new(key, b"second")
            raise StoreError(
                f"{store!r} cannot be used because it ignores conditional puts (If-None-Match) "
                "and so would overwrite finished work: use AWS S3, MinIO, Ceph or another store "
                "that honours them"
            )
        if store.get(key) != b"first":
            raise StoreError(f"{store!r} returned other bytes than were put: use another store")
    finally:
        try:
            store.delete(key)
        except StoreError as error:  # write-once buckets forbid it, and serve us well
            log.warning("the probe's object stays behind: %s", error)


# Sentences -------------------------------------------------------------------------------------

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


_OS_FIXES = {
    errno.EACCES: "change its permissions or use another root",
    errno.EEXIST: "a file is in the way of a directory, use another root",
    errno.EISDIR: "a directory is in the way of a file, use another key",
    errno.ENOTDIR: "a file is in the way of a directory, use another root",
    errno.EDQUOT: "free some space or use another root",
    errno.ENOSPC: "free some space or use another root",
    errno.EPERM: "use a root you may write to, on a file system with hard links",
    errno.EROFS: "use a root you may write to",
}


@contextmanager
def _explaining_os(path: Path, done: str) -> Iterator[None]:
    """Turn an OSError into a StoreError: `path` could not be `done`."""
    try:
        yield
    except OSError as error:
        fix = _OS_FIXES.get(error.errno or 0, "check the path and its file system")
        raise StoreError(f"{path} cannot be {done} ({error.strerror}): {fix}") from error


# Names -----------------------------------------------------------------------------------------


def _flaw(key: str) -> str | None:
    """Return what makes a string no key, or None."""
    if found := _UNSAFE.search(key):
        return f"has the character {found[0]!r}"
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            return f"has the segment {segment!r}"
        if segment.startswith(_TEMPORARY):
            return f"has a segment that begins with {_TEMPORARY!r}"
        if len(segment.encode()) > 255:
            return "has a segment above 255 bytes"
    return None


def _is_key(key: str) -> bool:
    return _flaw(key) is None


def _check_key(key: str) -> None:
    if flaw := _flaw(key):
        raise StoreError(
            f"key {_short(key)} {flaw}: use a relative path of plain names like 'a/b.json'"
        )


def _check_prefix(prefix: str) -> None:
    if prefix:
        _check_key(prefix.removesuffix("/"))


def _split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key/` into bucket and key, both checked."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket or not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
        raise StoreError(
            f"{_without_secrets(uri)!r} names no bucket: write s3://bucket/prefix, with the "
            "endpoint and credentials in the AWS_* environment"
        )
    key = key.removesuffix("/")
    _check_prefix(key)
    return bucket, key


def _local_path(path: str) -> Path:
    """Return a local path made absolute, so that it means the same in every process."""
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise StoreError(f"{scheme[0]}... is not supported: give a local path or s3://bucket/path")
    if not path or _UNSAFE.search(path):
        raise StoreError(f"{_short(path)} is not a path: give a local path or s3://bucket/path")
    return Path(path).expanduser().absolute()


def _without_secrets(url: str) -> str:
    """Cut a URL's user information and query, where credentials and signatures would be."""
    return re.sub(r"//.*@", "//", url.partition("?")[0])


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _fingerprint(data: bytes) -> str:
    return f"{len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()[:16]}"


# Files and waiting -----------------------------------------------------------------------------


def _read_file(path: Path) -> bytes:
    with _explaining_os(path, "read"):
        try:
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise MissingKey(f"there is no file {path}: check the path") from None


@contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """Write `data`, durably, to a hidden file beside `path`; remove it at the end."""
    _make_directory(path.parent)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:  # not mkstemp: others may read what we publish
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_directory(path: Path) -> None:
    """Create a directory and its parents so that their names survive a power cut."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _back_off(attempt: int) -> None:
    """Wait a random time that grows with the attempts, 5 s at most."""
    time.sleep(random.uniform(0, min(0.1 * 2**attempt, 5)))
