"""Stores that say what is the matter in codes of their own, and lists of S3-compatible servers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cluster.store import StoreError, open_store, remote, s3_client
from tests.cluster.store.test_store import probe_fails, sentence
from tests.support.faults import Fault, FaultProxy, Request
from tests.support.s3_server import s3_environment
from tests.support.web_servers import serving

PERMISSION = "access is denied"
DISABLED = "is disabled"
QUOTA = "quota is used up"
BY_NAME = "set `addressing_style = virtual`"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATIENT", "HASTY"):
        patience = replace(getattr(remote, name), longest_wait=0.01)
        monkeypatch.setattr(remote, name, patience)


@pytest.mark.parametrize(
    ("method", "status", "code", "said"),
    [
        ("PUT", 403, "AccessDenied", PERMISSION),
        ("PUT", 403, "QuotaExceeded", QUOTA),
        ("PUT", 400, "XMinioAdminBucketQuotaExceeded", QUOTA),
        ("PUT", 507, "XMinioStorageFull", QUOTA),
        ("PUT", 403, "UserSuspended", DISABLED),
        ("PUT", 403, "AllAccessDisabled", DISABLED),
        ("PUT", 403, "AccountProblem", DISABLED),
        ("PUT", 403, "SecondLevelDomainForbidden", BY_NAME),
        ("PUT", 400, "PathStyleDomainForbidden", BY_NAME),
        ("PUT", 400, "VirtualHostDomainRequired", BY_NAME),
        ("PUT", 400, "KMS.DisabledException", "encryption key cannot be used"),
        ("PUT", 405, "MethodNotAllowed", "forbids this operation"),
        ("PUT", 403, "SomethingNew", "for the reason SomethingNew"),
        ("GET", 403, "InvalidObjectState", "it is archived: restore it"),
        ("GET", 403, "AccessDenied", "AWS_REQUEST_PAYER=requester"),
    ],
)
def test_each_code_is_its_own_sentence(
    s3_root: str,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    status: int,
    code: str,
    said: str,
) -> None:
    open_store(s3_root).put("a", b"data")

    def decide(request: Request) -> Fault | None:
        return Fault(str(status), code) if request.method == method else None

    with FaultProxy(s3_endpoint, decide) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(s3_root)
        with pytest.raises(StoreError) as refusal:
            store.get("a") if method == "GET" else store.put_new("b", b"data")
        assert said in sentence(refusal)
        assert (PERMISSION in str(refusal.value)) == (code == "AccessDenied")
        assert proxy.counts[str(status)] == 1


def test_the_probe_lists(s3_root: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(request: Request) -> Fault | None:
        return Fault("403") if request.method == "GET" and not request.key else None

    with FaultProxy(s3_endpoint, decide) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert PERMISSION in probe_fails(s3_root)


# Settings of the user --------------------------------------------------------------------------


@pytest.fixture
def seen(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Request]]:
    """The requests that reach a server."""
    requests: list[Request] = []
    with FaultProxy(s3_endpoint, lambda request: requests.append(request)) as proxy:  # type: ignore[func-returns-value]
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield requests


def test_who_pays_and_how_uploads_are_encrypted_can_be_given(
    s3_root: str, seen: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "key-1")
    store = open_store(s3_root)
    store.put_new("a", b"data")
    store.put("b", b"data")
    store.get("a")
    assert store.exists("a")
    assert sorted(store.list()) == ["a", "b"]
    store.delete("b")
    assert {request.method for request in seen} == {"PUT", "GET", "HEAD", "DELETE"}
    for request in seen:
        assert request.headers["x-amz-request-payer"] == "requester"
        if request.method == "PUT":
            assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"


def test_nothing_of_it_is_sent_unless_it_is_asked_for(s3_root: str, seen: list[Request]) -> None:
    open_store(s3_root).put_new("a", b"data")
    (request,) = seen
    assert not [name for name in request.headers if "payer" in name or "encryption" in name]


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_REQUEST_PAYER": "me"},
        {"AWS_SERVER_SIDE_ENCRYPTION": "rot13"},
        {"AWS_SERVER_SIDE_ENCRYPTION": "AES256", "AWS_SSE_KMS_KEY_ID": "k"},
    ],
)
def test_settings_that_cannot_be_are_named(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=next(iter(environment))):
        open_store(s3_root).put_new("a", b"data")


def test_the_users_configuration_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    config = s3_client.make_client(remote.HASTY).meta.config
    assert config.s3["addressing_style"] == "path"
    assert config.request_checksum_calculation == "when_required"
    file = tmp_path / "config"
    file.write_text(
        "[default]\nrequest_checksum_calculation = when_supported\n"
        "s3 =\n  addressing_style = virtual\n  payload_signing_enabled = true\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    config = s3_client.make_client(remote.HASTY).meta.config
    assert config.s3["addressing_style"] == "virtual"
    assert config.s3["payload_signing_enabled"] in (True, "true")
    assert config.request_checksum_calculation == "when_supported"


# Lists of other servers ------------------------------------------------------------------------

KEYS = [f"k{number}" for number in range(7)]


class Dialect:
    """How a server answers a list: whether it gives tokens, and what KeyCount is."""

    def __init__(self, token: str | None, total: bool, page: int = 3) -> None:
        self.token = token  # '' for one that is empty, None for none at all
        self.total = total
        self.page = page

    def __call__(self, query: dict[str, list[str]]) -> str:
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        left = [key for key in KEYS if key > after.removeprefix("token-")]
        page, more = left[: self.page], len(left) > self.page
        token = "" if self.token is None else self.token
        if self.token == "key" and more:
            token = f"token-{page[-1]}"
        elif self.token == "key":
            token = ""
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>1</Size></Contents>"
            for key in page
        )
        return (
            '<?xml version="1.0"?><ListBucketResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><Prefix></Prefix><MaxKeys>{self.page}</MaxKeys>"
            f"<KeyCount>{len(KEYS) if self.total else len(page)}</KeyCount>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{entries}"
            + (
                ""
                if self.token is None
                else f"<NextContinuationToken>{token}</NextContinuationToken>"
            )
            + "</ListBucketResult>"
        )


def answering(
    answer: Callable[[dict[str, list[str]]], str],
) -> AbstractContextManager[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer(parse_qs(urlsplit(self.path).query, keep_blank_values=True)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return serving(Handler)


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("token", ["key", "", None])
def test_lists_of_every_dialect_are_read_whole(
    monkeypatch: pytest.MonkeyPatch, token: str | None, total: bool
) -> None:
    with answering(Dialect(token, total)) as url:
        for name, value in s3_environment(url).items():
            monkeypatch.setenv(name, value)
        assert list(open_store("s3://bucket").list()) == KEYS


def test_a_page_that_lacks_a_key_is_no_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    dialect = Dialect("key", total=False)

    def losing(query: dict[str, list[str]]) -> str:
        page = dialect(query)
        start, stop = page.index("<Contents>"), page.index("</Contents>") + len("</Contents>")
        return page[:start] + page[stop:]

    with answering(losing) as url:
        for name, value in s3_environment(url).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match="damaged XML"):
            list(open_store("s3://bucket").list())


# Folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_mount_without_hard_links_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    said = probe_fails(str(tmp_path))
    assert "has no hard links" in said
    assert "gcsfuse" in said
    assert not list(tmp_path.iterdir())
