"""The client behind an S3 store: its settings, and how long it is waited for.

It is the one that boto3 would make, made by botocore, which lets clients share what they read from
botocore's own files: the second takes 20 ms instead of 110.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import Session, get_session

from cluster.store.base import StoreError, without_secrets
from cluster.store.remote import Patience

ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")


def make_client(patience: Patience) -> Any:
    """Make a client from the AWS_* environment and the files it names as they are now."""
    endpoint = endpoint_url()
    try:
        session = get_session()  # of its own: a session remembers the credentials it has read
        session.register_component("data_loader", _shared_loader(os.environ.get("AWS_DATA_PATH")))
        return session.create_client("s3", config=_config(session, patience))
    except ValueError:
        pass  # raised below: botocore's words, as a context, would repeat the URL
    raise StoreError(
        f"AWS_ENDPOINT_URL is {endpoint!r}, which is not a URL: give http(s)://host[:port]"
    )


def _config(session: Session, patience: Patience) -> Config:
    """The client's settings: what the user's configuration leaves open."""
    chosen = session.get_scoped_config()
    checksums = {
        name: "when_required"
        for name in ("request_checksum_calculation", "response_checksum_validation")
        if name not in chosen and f"AWS_{name.upper()}" not in os.environ
    }
    given = chosen.get("s3")
    style = given.get("addressing_style") if isinstance(given, dict) else None
    elsewhere = bool(endpoint_url() or chosen.get("endpoint_url") or chosen.get("services"))
    return Config(
        # One attempt: all of them share a quota of 500 that a retry takes 14 of, so in a storm
        # 36 requests at once would give up untried. The store repeats requests by itself.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=patience.connect_timeout,
        read_timeout=patience.read_timeout,
        max_pool_connections=32,
        # Buckets of other endpoints seldom have host names of their own. botocore adds the rest of
        # the user's `s3 =` to it.
        s3={"addressing_style": style or ("path" if elsewhere else "auto")},
        # Content-MD5 guards every upload and our sha256 every download; the trailing checksums of
        # newer SDKs would add nothing and keep out stores that do not know them, as radosgw.
        **checksums,
    )


def for_every_request() -> dict[str, str]:
    """What the environment adds to each request: who pays for it."""
    payer = os.environ.get("AWS_REQUEST_PAYER", "").lower()
    if payer not in ("", "requester", "true", "false"):
        raise StoreError(f"AWS_REQUEST_PAYER is {payer!r}: it must be requester, or not be set")
    return {"RequestPayer": "requester"} if payer in ("requester", "true") else {}


def for_uploads() -> dict[str, str]:
    """What the environment adds to each upload: how the store encrypts it."""
    encryption = os.environ.get("AWS_SERVER_SIDE_ENCRYPTION")
    key = os.environ.get("AWS_SSE_KMS_KEY_ID")
    if encryption not in (None, *ENCRYPTIONS):
        raise StoreError(
            f"AWS_SERVER_SIDE_ENCRYPTION is {encryption!r}: it must be one of "
            f"{', '.join(ENCRYPTIONS)}, or not be set"
        )
    if key and encryption == "AES256":
        raise StoreError("AWS_SSE_KMS_KEY_ID is set, but AWS_SERVER_SIDE_ENCRYPTION is not aws:kms")
    if key:
        return {"ServerSideEncryption": encryption or "aws:kms", "SSEKMSKeyId": key}
    return {"ServerSideEncryption": encryption} if encryption else {}


_shared_loader = functools.cache(create_loader)  # filled under the store's lock


def endpoint_url() -> str:
    """Return the endpoint the environment names, without any credentials in it, or ''."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return without_secrets(named)
