"""What stores behind a network have in common: one client a process, and patience.

A subclass says how its client is made, what its requests are and what its errors mean. The
sentences of errors quote nothing but error codes: the clients' own messages carry keys, signatures
and whole answers.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypeVar

from cluster.store.base import (
    Entry,
    MissingKey,
    Store,
    StoreError,
    check_key,
    check_prefix,
    probe,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_CREDENTIAL_READINGS = 3  # besides the first: enough to outlast a file being rewritten


@dataclass(frozen=True)
class Patience:
    """How long an answer is waited for and how often it is asked for again; times in seconds."""

    attempts: int
    connect_timeout: float
    read_timeout: float  # between two bytes
    longest_wait: float

    def wait(self, attempt: int) -> None:
        """Wait a random time that doubles with the attempts, so that many clients spread out."""
        time.sleep(random.uniform(0, min(0.2 * 2**attempt, self.longest_wait)))


PATIENT = Patience(attempts=12, connect_timeout=10, read_timeout=60, longest_wait=20)
HASTY = Patience(attempts=3, connect_timeout=5, read_timeout=8, longest_wait=1)


class Damaged(Exception):  # noqa: N818
    """An answer came that cannot be what the store sent; says what was wrong with it, and a fix."""


def checked(data: bytes, stored: str, service: str) -> bytes:
    """An object's bytes, if they have the sha256 that it was stored with; others' have none.

    Args:
        data: as they came.
        stored: of the object's metadata; anything that is no sha256 says nothing.
        service: where from, for the error.

    Raises:
        Damaged: they have another.
    """
    if re.fullmatch("[0-9a-f]{64}", stored) and hashlib.sha256(data).hexdigest() != stored:
        raise Damaged(
            f"never has the sha256 {stored[:16]}... that it was stored with: check the network to "
            f"{service}, or delete the object if it is damaged there"
        )
    return data


class Again(Enum):
    """Whether a failed request is worth repeating."""

    NO = "it would fail again"
    LATER = "the network or the store may recover"
    WITH_FRESH_CREDENTIALS = "they may have been renewed since they were read"


@dataclass(frozen=True)
class Decision:
    """What is made of an error."""

    error: StoreError
    again: Again = Again.NO


class RemoteStore(Store):
    """Objects under `scheme://bucket/prefix`.

    `patient=False` gives up on a silent or absent endpoint after seconds instead of minutes. Only
    bucket, prefix and patience are pickled; each process makes its own client when it first needs
    one, and another when its credentials are refused: they may have been renewed.
    """

    scheme: ClassVar[str]
    expected: ClassVar[tuple[type[Exception], ...]]  # what requests raise
    telltales: ClassVar[tuple[str, ...]]  # loggers that write secrets at DEBUG

    def __init__(self, bucket: str, prefix: str = "", *, patient: bool = True) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._patient = patient
        self._made: tuple[int, Any] | None = None  # by the process with this id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._root!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None, "retries": 0}

    @abstractmethod
    def get(self, key: str, most: int | None = None) -> bytes:
        """Return the whole object; raise MissingKey, or TooLarge above `most` bytes."""

    @abstractmethod
    def _new_client(self) -> Any:
        """Make a client from the environment as it is now."""

    @abstractmethod
    def _judge(self, error: Exception, uri: str) -> Decision:
        """Return what an expected error of a request about `uri` means."""

    @abstractmethod
    def _creation(self, key: str, data: bytes) -> Callable[[Any], bool]:
        """Return what creates an object with a client: False where one is in its way."""

    @abstractmethod
    def _look(self, key: str) -> Callable[[Any], Any]:
        """Return what asks a client for an object's properties; MissingKey where there is none."""

    @abstractmethod
    def _entries(self, prefix: str) -> Iterator[Entry]:
        """Yield what `entries` does, of a prefix that has been checked."""

    def put_new(self, key: str, data: bytes) -> bool:
        create = self._creation(key, data)
        for _ in range(10):
            if self._ask(key, create):
                return True
            with suppress(MissingKey):  # it was in the way, and has been deleted since
                return self._same_or_raise(key, data)
        raise StoreError(f"{self.uri(key)} is created and deleted all the time: use another root")

    def exists(self, key: str) -> bool:
        try:
            self._ask(key, self._look(key))
        except MissingKey:
            return False
        return True

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        return self._entries(prefix)

    def list(self, prefix: str = "") -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def uri(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    def probe(self) -> None:
        probe(type(self)(self.bucket, self.prefix, patient=False))

    @property
    def _root(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def _patience(self) -> Patience:
        return PATIENT if self._patient else HASTY

    @property
    def _folder(self) -> str:
        """What the names of all objects begin with: '' or 'some/prefix/'."""
        return f"{self.prefix}/" if self.prefix else ""

    def _name(self, key: str) -> str:
        """The name of a key's object in the bucket."""
        check_key(key)
        return self._folder + key

    def _ask(self, key: str, request: Callable[[Any], T]) -> T:
        """Return what `request` makes of a client, asking again while that can help.

        All that is asked here may be asked twice: a create that succeeded unheard meets its own
        bytes. Raises StoreError, outside of any `except`: the clients' errors carry secrets, and
        would come along as its context.
        """
        patience = self._patience
        renewals = 0
        for attempt in range(patience.attempts):
            client = None
            try:
                client = self._client()
                return request(client)
            except self.expected as error:
                decision = self._judge(error, f"{self._root}/{key}")
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

    def _client(self) -> Any:
        """Return this process's client: safe to share between threads, never across a fork."""
        for name in self.telltales:
            _quieten(name)
        with _client_lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = os.getpid(), self._new_client()
            return self._made[1]

    def _forget(self, client: Any) -> None:
        """Have the next request make a new client, unless another thread already did."""
        with _client_lock:
            if self._made is not None and self._made[1] is client:
                self._made = None


_client_lock = threading.Lock()


def _quieten(name: str) -> None:
    """Keep a logger from DEBUG, whatever level others have."""
    logger = logging.getLogger(name)
    if logger.level < logging.INFO:
        logger.setLevel(logging.WARNING)


def _renew_client_lock() -> None:
    """In a fork the lock may be held for ever, by a thread that was not copied."""
    global _client_lock
    _client_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_client_lock)
