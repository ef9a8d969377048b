"""What gs:// and az:// say where they cannot be used, by their real clients over real HTTP.

The contract that they keep is in test_store.py, on all stores.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from cluster.store import MissingKey, StoreError, TooLarge, open_store, read, remote
from tests.support.other_stores import AZURITE_KEY, az_environment, gs_environment
from tests.support.web_servers import serving

# (status, error code, message)
Answer = tuple[int, str, str]


def probe_fails(root: str) -> str:
    """The sentence with which `probe` refuses, which must take seconds and not minutes."""
    started = time.monotonic()
    with pytest.raises(StoreError) as error:
        open_store(root).probe()
    assert time.monotonic() - started < 30
    text = str(error.value)
    assert "\n" not in text
    assert ": " in text, "a rule and then a fix"
    assert "http://" not in text or "does not exist at" in text or "cannot be reached" in text
    return text


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions follow each other at once."""
    for name in ("PATIENT", "HASTY"):
        monkeypatch.setattr(remote, name, replace(getattr(remote, name), longest_wait=0.01))


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("gs", "bucket 'no-such-bucket' does not exist at http://127.0.0.1:"),
        ("az", "container 'no-such-bucket' does not exist at the Azure account devstoreaccount1"),
    ],
)
def test_a_bucket_that_does_not_exist_is_named(
    scheme: str, says: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(f"{scheme}_endpoint")
    assert probe_fails(f"{scheme}://no-such-bucket/prefix").startswith(says)
    with pytest.raises(StoreError, match="no-such-bucket"):
        list(open_store(f"{scheme}://no-such-bucket/prefix").list())


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_file_that_is_too_large_is_not_read(scheme: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(f"{scheme}_root")
    open_store(root).put("large", bytes(100))
    assert read(f"{root}/large", 100) == bytes(100)
    with pytest.raises(TooLarge, match="has 100 bytes, of which 99 are the most"):
        read(f"{root}/large", 99)
    with pytest.raises(MissingKey):
        read(f"{root}/nothing", 99)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_large_object_is_created_once_too(scheme: str, request: pytest.FixtureRequest) -> None:
    store = open_store(request.getfixturevalue(f"{scheme}_root"))
    data = bytes(9_000_000)  # which Google's client would upload in a session
    assert [store.put_new("large", data), store.put_new("large", data)] == [True, False]
    with pytest.raises(StoreError, match="is never overwritten"):
        store.put_new("large", data + b"1")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_lists_go_on_over_many_answers(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip(f"cluster.store.{scheme}")
    monkeypatch.setattr(module, "PAGE", 3)
    store = open_store(request.getfixturevalue(f"{scheme}_root"))
    keys = [f"k/{n:02d}" for n in range(10)]
    for key in keys:
        store.put_new(key, b"1")
    assert list(store.list("k/")) == keys


@contextmanager
def answering(answer: Callable[[], Answer | None]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers every request alike; its URL, and the requests that it got."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.command)
            status, code, message = answer() or (500, "", "")
            error = {"code": status, "message": message, "errors": [{"reason": code}]}
            body = json.dumps({"error": error}).encode()
            if "x-ms-version" in self.headers:
                body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("x-ms-error-code", code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with serving(Handler) as url:
        yield url, asked


def lead_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**gs_environment(endpoint), **az_environment(endpoint)}.items():
        monkeypatch.setenv(name, value)


SENTENCES = [
    (
        "gs",
        (403, "forbidden", "no storage.objects.create access"),
        "grant roles/storage.objectUser",
    ),
    ("gs", (403, "quotaExceeded", "Quota exceeded"), "the project's quota is used up"),
    ("gs", (403, "accountDisabled", "The billing account is closed"), "billing is disabled"),
    ("gs", (403, "retentionPolicyNotMet", "Retention policy"), "a retention policy forbids it"),
    ("gs", (400, "required", "Bucket is a requester pays bucket"), "its requester pays"),
    ("gs", (401, "authError", "Invalid Credentials"), "no credentials were found"),
    ("gs", (503, "backendError", ""), "the store answers 503: try again later"),
    ("gs", (429, "rateLimitExceeded", ""), "the store answers 429: try again later"),
    ("gs", (418, "teapot", ""), "the store answers 418: check the store's documentation"),
    ("az", (403, "AuthorizationPermissionMismatch", ""), "grant Storage Blob Data Contributor"),
    ("az", (403, "SomethingNew", ""), "was refused (SomethingNew), access is denied"),
    ("az", (403, "AuthenticationFailed", ""), "not valid or has expired: check AZURE_STORAGE_"),
    ("az", (403, "AccountIsDisabled", ""), "the account is disabled: ask who owns it"),
    ("az", (409, "BlobImmutableDueToPolicy", ""), "a policy forbids changing it"),
    ("az", (503, "ServerBusy", ""), "the store answers 503 ServerBusy: try again later"),
    ("az", (400, "InvalidInput", ""), "the store answers 400 InvalidInput: check the store's"),
]


@pytest.mark.parametrize(("scheme", "answer", "says"), SENTENCES)
def test_what_a_store_refuses_is_a_sentence(
    scheme: str, answer: Answer, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(f"cluster.store.{scheme}")
    with answering(lambda: answer) as (endpoint, asked):
        lead_to(endpoint, monkeypatch)
        said = probe_fails(f"{scheme}://quota-bucket/prefix")
    assert says in said
    assert AZURITE_KEY not in said
    passing = "later" in says or answer[0] == 401 or answer[1] == "AuthenticationFailed"
    # Beside them Google's client asks for the bucket by itself.
    puts = [one for one in asked if one in ("PUT", "POST")]
    assert len(puts) == (remote.HASTY.attempts if passing else 1)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_an_answer_that_was_lost_is_asked_for_again(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = request.getfixturevalue(f"{scheme}_root")
    store = open_store(root)
    store.put_new("there", b"1")
    class_ = type(store)
    asked = class_._client
    failures = iter([ConnectionResetError("reset"), TimeoutError("slow")])

    def failing(self: object) -> object:
        for failure in failures:
            raise failure
        return asked(self)

    monkeypatch.setattr(class_, "_client", failing)
    assert store.put_new("there", b"1") is False  # which may have been its own
    assert store.retries == 2


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_closed_port_is_refused_in_seconds(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(f"cluster.store.{scheme}")
    with socket.socket() as closed:  # bound and never listening: nobody else can open it
        closed.bind(("127.0.0.1", 0))
        lead_to(f"http://127.0.0.1:{closed.getsockname()[1]}", monkeypatch)
        said = probe_fails(f"{scheme}://bucket/prefix")
    assert "cannot be reached" in said


def test_missing_credentials_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("cluster.store.gs")
    pytest.importorskip("cluster.store.az")
    for name in ("STORAGE_EMULATOR_HOST", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path_factory.mktemp("none")))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert "no credentials were found for gs://bucket/prefix" in probe_fails("gs://bucket/prefix")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json")
    assert "no credentials were found for gs://bucket/prefix" in probe_fails("gs://bucket/prefix")
    assert "set AZURE_STORAGE_CONNECTION_STRING, or" in probe_fails("az://bucket/prefix")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "nonsense")
    assert "AZURE_STORAGE_CONNECTION_STRING cannot be read" in probe_fails("az://bucket/prefix")


def test_a_wrong_key_is_refused_and_not_repeated(
    az_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = AZURITE_KEY.replace("Eby8", "aaaa")
    for name, value in az_environment(az_endpoint, wrong).items():
        monkeypatch.setenv(name, value)
    said = probe_fails("az://bucket/prefix")
    assert "check the key" in said
    assert wrong not in said


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_no_secret_is_logged_at_any_level(
    scheme: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    root = request.getfixturevalue(f"{scheme}_root")
    for name in ("", "azure", "google", "urllib3", "cluster"):
        caplog.set_level(logging.DEBUG, name)
    store = open_store(root)
    store.put_new("a", b"1")
    store.get("a")
    for secret in (AZURITE_KEY, "SharedKey ", "Authorization", "sig=", "Bearer"):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [
        ("gs", "google.cloud.storage", "google-cloud-storage"),
        ("az", "azure.storage.blob", "azure-storage-blob"),
    ],
)
def test_a_client_that_is_not_installed_is_named_with_its_extra(
    scheme: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"cluster.store.{scheme}", raising=False)
    for use in (open_store, read):
        with pytest.raises(StoreError) as error:
            use(f"{scheme}://bucket/prefix")
        said = str(error.value)
        assert said.startswith(f"{scheme}:// needs {package}, which is not installed")
        assert f"pip install 'meancache-ray[{scheme}]'" in said
