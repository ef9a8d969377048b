"""Proof that a leader's node and the driver see the same output, with the leader's credentials.

    .shared-{token}            written by the driver, read by every leader before its ranks start
    .shared-{token}-{answer}   written by a leader, read and deleted by the driver

A folder on a disk of its own has the same path on every node, and nothing else says that what is
rendered there is lost to the driver.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.store import MissingKey, Store, StoreError

log = logging.getLogger(__name__)

FIX = "give s3://bucket/prefix, or a folder that all nodes share"


@dataclass(frozen=True)
class SharedOutput:
    """What leaders have to prove. Pickles, with the store and without credentials."""

    store: Store
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @contextmanager
    def offered(self) -> Iterator[SharedOutput]:
        """The driver's object lies in the store while the context is open. Raises StoreError."""
        self.store.put_new(self._key, self.token.encode())
        try:
            yield self
        finally:
            self._delete(self._key)

    def answer(self) -> str:
        """A leader's part: reads the driver's object and writes one; returns its token.

        Raises:
            StoreError: the store fails here, or is another than the driver's.
        """
        try:
            self.store.get(self._key)
        except MissingKey as error:
            raise StoreError(
                f"what the driver wrote to {self.store.uri(self._key)} is not there, so the "
                f"output is not the driver's but a disk of the node's own: {FIX}"
            ) from error
        answer = secrets.token_hex(8)
        self.store.put_new(f"{self._key}-{answer}", answer.encode())
        return answer

    def check(self, answer: str) -> None:
        """The driver's part: reads what a leader wrote. Raises StoreError."""
        key = f"{self._key}-{answer}"
        try:
            self.store.get(key)
        except MissingKey as error:
            raise StoreError(
                f"what it wrote to {self.store.uri(key)} does not reach the driver, so the "
                f"output is a disk of the node's own: {FIX}"
            ) from error
        self._delete(key)

    @property
    def _key(self) -> str:
        return f".shared-{self.token}"

    def _delete(self, key: str) -> None:
        try:
            self.store.delete(key)
        except StoreError as error:  # write-once buckets forbid it, and serve us well
            log.warning("a proof of the shared output stays behind: %s", error)
