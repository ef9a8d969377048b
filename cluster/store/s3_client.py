"""The client behind an S3 store: its settings, and how long it is waited for.

It is the one that boto3 would make, made by botocore, which lets clients share what they read from
botocore's own files: the second takes 20 ms instead of 110.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import get_session

from cluster.store.base import StoreError, without_secrets


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


def make_client(patience: Patience) -> Any:
    """Make a client from the AWS_* environment and the files it names as they are now."""
    endpoint = endpoint_url()
    config = Config(
        # One attempt: all of them share a quota of 500 that a retry takes 14 of, so in a storm
        # 36 requests at once would give up untried. The store repeats requests by itself.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=patience.connect_timeout,
        read_timeout=patience.read_timeout,
        max_pool_connections=32,
        # Buckets of other endpoints seldom have host names of their own.
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Content-MD5 guards every upload and our sha256 every download; the trailing checksums of
        # newer SDKs would add nothing and keep out stores that do not know them, as radosgw.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = get_session()  # of its own: a session remembers the credentials it has read
        session.register_component("data_loader", _shared_loader(os.environ.get("AWS_DATA_PATH")))
        return session.create_client("s3", config=config)
    except ValueError:
        pass  # raised below: botocore's words, as a context, would repeat the URL
    raise StoreError(
        f"AWS_ENDPOINT_URL is {endpoint!r}, which is not a URL: give http(s)://host[:port]"
    )


_shared_loader = functools.cache(create_loader)  # filled under the store's lock


def quieten() -> None:
    """Keep botocore from logging at DEBUG, where it writes the key id and the session token."""
    botocore_log = logging.getLogger("botocore")
    if botocore_log.level < logging.INFO:
        botocore_log.setLevel(logging.WARNING)


def endpoint_url() -> str:
    """Return the endpoint the environment names, without any credentials in it, or ''."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return without_secrets(named)
