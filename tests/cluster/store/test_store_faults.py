"""Claims about cluster.store on S3 behind networks and stores that misbehave, over real HTTP."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import logging
import os
import pickle
import re
import ssl
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.store import Store, StoreError, open_store, read, remote, s3_client
from tests.cluster.store.test_store import probe_fails, sentence
from tests.support.faults import Fault, FaultProxy, Request
from tests.support.s3_server import serve_s3


class Script:
    """Faults for the next requests of a method, in order; remembers all requests."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, Fault]] = []
        self.seen: list[Request] = []

    def __call__(self, request: Request) -> Fault | None:
        self.seen.append(request)
        if self.faults and self.faults[0][0] == request.method:
            return self.faults.pop(0)[1]
        return None

    def next(self, method: str, *kinds: str) -> None:
        self.faults = [(method, Fault(kind)) for kind in kinds]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATIENT", "HASTY"):
        patience = replace(getattr(remote, name), longest_wait=0.01)
        monkeypatch.setattr(remote, name, patience)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def proxy(
    s3_root: str, s3_endpoint: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint, script) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def store(proxy: FaultProxy, s3_root: str) -> Store:
    return open_store(s3_root)


# Faults that pass ------------------------------------------------------------------------------

REFUSALS = ["409", "429", "500", "503"]
METHODS: dict[str, Callable[[Store], object]] = {
    "PUT": lambda store: store.put("a", b"data"),
    "GET": lambda store: store.get("a"),
    "HEAD": lambda store: store.exists("a"),
    "DELETE": lambda store: store.delete("b"),
}


@pytest.mark.parametrize("kind", [*REFUSALS, "reset", "lost ack"])
def test_a_fault_that_passes_changes_no_result(
    store: Store, script: Script, proxy: FaultProxy, kind: str
) -> None:
    store.put("a", b"data")
    expected = [use(store) for use in METHODS.values()]
    for method in METHODS:
        script.faults += [(method, Fault(kind))] * 3
    assert [use(store) for use in METHODS.values()] == expected
    script.next("GET", *[kind] * 3)
    assert list(store.list()) == ["a"]
    assert not script.faults
    assert proxy.counts == {kind: 15}


@pytest.mark.parametrize("kind", [*REFUSALS, "reset", "corrupt up"])
def test_put_new_creates_after_faults_before_the_store(
    store: Store, script: Script, kind: str
) -> None:
    script.next("PUT", *[kind] * 3)
    assert store.put_new("a", b"data") is True
    assert not script.faults
    assert store.get("a") == b"data"


def test_a_lost_answer_to_put_new_is_no_conflict_with_oneself(store: Store, script: Script) -> None:
    script.next("PUT", "lost ack", "500", "lost ack")
    assert store.put_new("a", b"1") is False
    assert not script.faults
    assert store.get("a") == b"1"


@pytest.mark.parametrize("put", ["put", "put_new"])
def test_an_upload_damaged_on_its_way_is_sent_again(store: Store, script: Script, put: str) -> None:
    data = os.urandom(100_000)
    script.next("PUT", *["corrupt up"] * 4)
    getattr(store, put)("a", data)
    assert len(script.seen) == 5
    assert store.get("a") == data


@pytest.mark.parametrize("kind", ["truncate", "corrupt down"])
def test_a_body_damaged_on_its_way_is_read_again(store: Store, script: Script, kind: str) -> None:
    data = os.urandom(100_000)
    store.put_new("a", data)
    script.next("GET", *[kind] * 4)
    assert store.get("a") == data
    assert not script.faults


@pytest.mark.parametrize("use", METHODS.values(), ids=METHODS)
def test_a_store_that_stalls_is_asked_again(
    store: Store,
    script: Script,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Store], object],
) -> None:
    monkeypatch.setattr(remote, "PATIENT", replace(remote.PATIENT, read_timeout=0.5))
    store.put("a", b"data")
    expected = use(store)
    method = script.seen[-1].method
    script.next(method, "stall")
    assert use(store) == expected
    assert proxy.counts["stall"] == 1


def test_a_storm_over_many_requests_fails_none(
    s3_root: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm = ("503", "500", "reset", "503")
    asked: Counter[str] = Counter()

    def decide(request: Request) -> Fault | None:
        asked[request.key] += 1
        return Fault(storm[asked[request.key] - 1]) if asked[request.key] <= len(storm) else None

    with FaultProxy(s3_endpoint, decide) as proxy, ThreadPoolExecutor(16) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(s3_root)
        assert all(pool.map(lambda n: store.put_new(f"k/{n}", b""), range(48)))
        assert proxy.counts == {"503": 96, "500": 48, "reset": 48}


def test_each_good_request_is_one_request(store: Store, script: Script) -> None:
    for use, requests in [
        (lambda: store.put_new("a", b"1"), ["PUT"]),
        (lambda: store.put("b", b"1"), ["PUT"]),
        (lambda: store.get("a"), ["GET"]),
        (lambda: store.exists("a"), ["HEAD"]),
        (lambda: list(store.entries()), ["GET"]),
    ]:
        script.seen.clear()
        use()
        assert [request.method for request in script.seen] == requests


# Faults that stay ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", "BadDigest"),
        ("400", "IncompleteBody"),
        ("400", "RequestTimeout"),
        ("400", "XAmzContentSHA256Mismatch"),
        ("503", "ServiceUnavailable"),
    ],
)
def test_refusals_that_pass_are_repeated_whatever_their_status(
    store: Store, script: Script, status: str, code: str
) -> None:
    script.faults = [("PUT", Fault(status, code=code))] * 3
    assert store.put_new("a", b"data") is True
    assert not script.faults


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        ("400", "AuthorizationHeaderMalformed", "is in another region: set AWS_DEFAULT_REGION"),
        ("400", "InvalidToken", "the session token is not valid: renew AWS_SESSION_TOKEN"),
        ("400", "RequestTimeout", "took too long on its way in every attempt: check the network"),
        ("403", "AccessDenied", "access is denied: grant s3:GetObject"),
        ("403", "RequestTimeTooSkewed", "this machine's clock is wrong: set it"),
        ("403", "SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY"),
        ("404", "NoSuchBucket", "does not exist at http"),
        ("418", "X-Amz-Signature=ab", "the store answers 418: check the store's documentation"),
    ],
)
def test_refusals_that_stay_are_sentences(
    store: Store, script: Script, status: str, code: str, says: str
) -> None:
    script.faults = [("PUT", Fault(status, code=code))] * 20
    with pytest.raises(StoreError, match=re.escape(says)) as error:
        store.put_new("a", b"data")
    sentence(error)


@pytest.mark.parametrize(
    ("kind", "use", "says"),
    [
        ("truncate", "GET", "broke off in every reading: check the network"),
        ("corrupt down", "GET", "that it was stored with: check the network"),
        ("corrupt up", "PUT", "was damaged on its way in every attempt: check the network"),
        ("409", "PUT", "stayed in conflict with other writers: run it again"),
        ("503", "PUT", "the store answers 503 SlowDown: try again later"),
        ("500", "HEAD", "the store answers 500: try again later"),
        ("reset", "DELETE", "cannot be reached for s3://"),
        ("400", "PUT", "the store answers 400 BadRequest: check the store's documentation"),
    ],
)
def test_a_fault_that_stays_ends_in_a_sentence(
    store: Store, script: Script, kind: str, use: str, says: str
) -> None:
    store.put("a", b"data")
    script.seen.clear()
    script.next(use, *[kind] * 100)
    with pytest.raises(StoreError, match=re.escape(says)) as error:
        METHODS[use](store)
    assert "s3://" in sentence(error)
    assert len(script.seen) == (1 if kind == "400" else remote.PATIENT.attempts)


def test_one_file_is_not_waited_for_as_long_as_a_job_would(
    store: Store, script: Script, s3_root: str
) -> None:
    store.put("a", b"x" * 1000)
    script.next("GET", *["truncate"] * 100)
    with pytest.raises(StoreError, match="broke off in every reading") as error:
        read(f"{s3_root}/a")
    sentence(error)
    assert len(script.faults) == 100 - remote.HASTY.attempts


def test_a_store_that_always_stalls_is_given_up(
    store: Store, script: Script, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "HASTY", replace(remote.HASTY, read_timeout=0.2))
    script.next("PUT", *["stall"] * 10)
    assert "cannot be reached for s3://" in probe_fails(s3_root)


def plain(s3_root: str) -> tuple[str, str]:
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    return bucket, prefix


@pytest.mark.parametrize("metadata", [{}, {"sha256": "as others write it"}])
def test_objects_of_others_are_read_without_our_sha256(
    store: Store, s3_root: str, metadata: dict[str, str]
) -> None:
    bucket, prefix = plain(s3_root)
    client = boto3.session.Session().client("s3")
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"theirs", Metadata=metadata)
    assert store.get("a") == b"theirs"


def test_an_object_damaged_in_the_store_is_never_returned(store: Store, s3_root: str) -> None:
    bucket, prefix = plain(s3_root)
    client = boto3.session.Session().client("s3")
    client.put_object(
        Bucket=bucket, Key=f"{prefix}/a", Body=b"rotten", Metadata={"sha256": "0" * 64}
    )
    with pytest.raises(StoreError, match="or delete the object if it is damaged there") as error:
        store.get("a")
    sentence(error)


def test_a_store_without_conditional_puts_is_named(
    store: Store, script: Script, s3_root: str
) -> None:
    script.next("PUT", *["501"] * 20)
    assert "lacks an operation" in probe_fails(s3_root)


def test_a_probe_whose_delete_is_forbidden_only_warns(
    store: Store, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script.next("DELETE", "403")
    store.probe()
    assert "access is denied" in caplog.text


# Lists -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint_of_small_pages(s3_endpoint: str) -> Iterator[str]:
    """URL of a server whose lists have pages of 4 keys."""
    with serve_s3(MOTO_S3_DEFAULT_MAX_KEYS="4") as endpoint:
        yield endpoint


def test_list_goes_beyond_damaged_pages(
    endpoint_of_small_pages: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"r/{n:06d}.json" for n in range(10)]
    with FaultProxy(endpoint_of_small_pages, script) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        boto3.session.Session().client("s3").create_bucket(Bucket="small-pages")
        store = open_store("s3://small-pages/root")
        for key in keys:
            store.put_new(key, b"")
        script.seen.clear()
        assert list(store.list("r/")) == keys
        assert len(script.seen) == 3
        entries = store.entries("r/")
        listed = []
        for _ in range(3):  # the faults meet the first page, then the second, then the third
            script.next("GET", "truncate", "503", "truncate", "reset")
            listed += [next(entries).key]
            assert not script.faults
            listed += [next(entries).key for _ in range(min(3, 10 - len(listed)))]
        assert listed == keys
        assert list(entries) == []
        page = raw_page(proxy.behind, script.seen[0])
        script.faults = [("GET", Fault("corrupt down", at=share(page, b"true</IsTruncated>")))]
        assert list(store.list("r/")) == keys


def raw_page(server: str, request: Request) -> bytes:
    """The answer to a list, as the server sends it."""
    connection = http.client.HTTPConnection(server)
    connection.request("GET", f"/{request.bucket}?{request.query}")
    return connection.getresponse().read()


def share(page: bytes, part: bytes) -> float:
    return (page.index(part) + 0.5) / len(page)


def test_a_list_damaged_anywhere_never_loses_a_key(
    store: Store, script: Script, proxy: FaultProxy
) -> None:
    keys = ["k/aa", "k/ab", "k/ac"]
    for key in keys:
        store.put(key, b"")
    assert list(store.list("k/")) == keys
    page = raw_page(proxy.behind, script.seen[-1])
    lists = Counter[bool]()
    for position in range(0, len(page), 11):
        script.faults = [("GET", Fault("corrupt down", at=(position + 0.5) / len(page)))]
        listed = list(store.list("k/"))
        assert len(listed) == 3
        lists[listed == keys] += 1
    assert proxy.counts["corrupt down"] == len(range(0, len(page), 11))
    # A letter of a key that stays a letter cannot be told from another key: S3 sends no checksum.
    assert lists[False] <= 3 * len("some/prefix/k/aa") / 11 + 3


def test_a_list_that_is_always_damaged_is_never_returned(store: Store, script: Script) -> None:
    store.put("a", b"")
    script.next("GET", *["truncate"] * 100)
    with pytest.raises(StoreError, match="damaged XML") as error:
        list(store.list())
    sentence(error)


# Credentials -----------------------------------------------------------------------------------


class Keys:
    """A store's door: refuses all but one access key, with a code; others pass."""

    def __init__(self, accepted: str) -> None:
        self.accepted = accepted
        self.code = "ExpiredToken"
        self.seen: list[Request] = []

    def __call__(self, request: Request) -> Fault | None:
        self.seen.append(request)
        if f"Credential={self.accepted}/" in request.headers["authorization"]:
            return None
        return Fault("403" if self.code == "InvalidAccessKeyId" else "400", code=self.code)


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes the shared credentials file, as a cron job would."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "nightly")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)

    def write(key_id: str) -> None:
        lines = ["[nightly]", f"aws_access_key_id={key_id}", "aws_secret_access_key=hidden"]
        file.write_text("\n".join(lines))

    return write


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
@pytest.mark.parametrize("use", METHODS.values(), ids=METHODS)
def test_a_store_goes_on_with_renewed_credentials(
    s3_root: str,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    credentials: Callable[[str], None],
    code: str,
    use: Callable[[Store], object],
) -> None:
    keys = Keys("OLDKEY")
    keys.code = code
    credentials("OLDKEY")
    with FaultProxy(s3_endpoint, keys) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(s3_root)
        store.put("a", b"data")
        expected = use(store)
        credentials("NEWKEY")
        keys.accepted = "NEWKEY"
        assert use(store) == expected
        renewed = store._client()  # type: ignore[attr-defined]
        assert use(store) == expected
        assert store._client() is renewed  # type: ignore[attr-defined]


def test_credentials_that_stay_expired_end_in_a_sentence_soon(
    s3_root: str,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    credentials: Callable[[str], None],
) -> None:
    keys = Keys("NEWKEY")
    credentials("OLDKEY")
    with FaultProxy(s3_endpoint, keys) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for use in (METHODS["PUT"], METHODS["HEAD"], lambda store: list(store.list())):
            keys.seen.clear()
            with pytest.raises(StoreError, match="have expired: renew them") as error:
                use(open_store(s3_root))
            assert "OLDKEY" not in sentence(error)
            assert len(keys.seen) <= 12


def test_many_threads_renew_credentials_together(
    s3_root: str,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    credentials: Callable[[str], None],
) -> None:
    keys = Keys("OLDKEY")
    credentials("OLDKEY")
    made: list[remote.Patience] = []
    make_client = s3_client.make_client
    monkeypatch.setattr(
        s3_client, "make_client", lambda patience: (made.append(patience), make_client(patience))[1]
    )
    with FaultProxy(s3_endpoint, keys) as proxy, ThreadPoolExecutor(8) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(s3_root)
        store.put("a", b"data")
        credentials("NEWKEY")
        keys.accepted = "NEWKEY"
        assert set(pool.map(lambda _: store.get("a"), range(8))) == {b"data"}
    assert len(made) == 2


def test_a_credential_process_that_fails_once_is_run_again(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, ran = tmp_path / "program", tmp_path / "ran"
    program.write_text(
        f"[ -e {ran} ] || {{ touch {ran}; exit 1; }}\n"
        'echo \'{"Version": 1, "AccessKeyId": "FROMPROCESS", "SecretAccessKey": "hidden"}\'\n'
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert open_store(s3_root).put_new("a", b"data") is True
    assert ran.exists()


SECRETS = ("AKIALEAKTESTKEY00001", "secret/value+of/the/key", "session-token-value", "X-Amz-")


@pytest.mark.parametrize("kind", ["200", "403", "500", "truncate", "expired"])
def test_no_error_log_or_pickle_holds_credentials(
    store: Store,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS[2])
    for name in ("", "boto3", "botocore", "urllib3", "cluster.store"):
        caplog.set_level(logging.DEBUG, logger=name)
    store.put("a", b"data")
    logging.getLogger("botocore").setLevel(logging.DEBUG)  # as a user may at any time
    fault = Fault("400", code="ExpiredToken") if kind == "expired" else None
    errors: list[StoreError] = []
    uses = [*METHODS.items(), ("GET", lambda store: list(store.list()))]
    for method, use in uses[:1] if fault else uses:  # which makes four clients a use
        if kind != "200":
            script.faults = [(method, fault or Fault(kind))] * 50
        try:
            use(store)
        except StoreError as error:
            errors.append(error)
    assert bool(errors) == (kind != "200")
    shown = [caplog.text, repr(store), pickle.dumps(store).decode("latin-1")]
    for error in errors:
        assert error.__cause__ is None
        assert error.__context__ is None
        shown += ["".join(traceback.format_exception(error)), repr(error)]
        shown.append(pickle.dumps(error).decode("latin-1"))
    for text in shown:
        for secret in SECRETS:
            assert secret not in text


def test_a_credentials_file_that_cannot_be_read_is_said(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("aws_access_key_id without a section")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials were found" in probe_fails(s3_root)


# What is sent, and TLS -------------------------------------------------------------------------


def test_uploads_carry_their_checksums_and_no_trailing_one(store: Store, script: Script) -> None:
    store.put_new("a", b"1")
    [request] = script.seen
    assert (request.method, request.key) == ("PUT", "some/prefix/a")
    assert request.headers["if-none-match"] == "*"
    assert request.headers["content-md5"] == "xMpCOKC5I4INzFCab3WEmw=="
    assert request.headers["content-length"] == "1"
    assert request.headers["x-amz-meta-sha256"].startswith("6b86b273ff34fce1")
    assert not [name for name in request.headers if "checksum" in name or "trailer" in name]


def test_a_custom_endpoint_is_addressed_by_path(
    store: Store, script: Script, proxy: FaultProxy
) -> None:
    store.put_new("a", b"1")
    assert script.seen[0].headers["host"] == f"127.0.0.1:{proxy.server_port}"


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody but its own file vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a store of ours")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return folder / "ca.pem", context


@pytest.fixture
def tls(
    s3_root: str,
    s3_endpoint: str,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """The file to trust for the https:// endpoint that AWS_ENDPOINT_URL names."""
    bundle, context = certificate(tmp_path)
    with FaultProxy(s3_endpoint, script, tls=context) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        yield bundle


def test_a_store_behind_tls_works_with_its_ca_bundle(
    tls: Path, s3_root: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls))
    store, data = open_store(s3_root), os.urandom(3_000_000)
    store.probe()
    script.next("PUT", "corrupt up", "503", "reset")
    assert store.put_new("a", data) is True
    script.next("GET", "truncate", "corrupt down", "reset")
    assert store.get("a") == data
    assert not script.faults
    assert list(store.list()) == ["a"]
    for request in script.seen:  # radosgw answers 411 over TLS to bodies in chunks
        assert "aws-chunked" not in request.headers.get("content-encoding", "")
        assert "transfer-encoding" not in request.headers
        assert request.method != "PUT" or request.headers["content-length"]
        assert not [name for name in request.headers if "trailer" in name or "crc" in name]


def test_a_certificate_that_is_not_trusted_is_named(
    tls: Path, s3_root: str, script: Script
) -> None:
    said = probe_fails(s3_root)
    assert "the certificate of https://127.0.0.1:" in said
    assert "is not trusted (self-signed certificate)" in said
    assert "set AWS_CA_BUNDLE" in said
    assert not script.seen


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_ca_bundle_that_is_none_is_named(
    tls: Path,
    s3_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    assert f"AWS_CA_BUNDLE is '{bundle}', which is no readable file" in probe_fails(s3_root)


def test_an_endpoint_that_speaks_no_tls_is_named(
    proxy: FaultProxy, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("http:", "https:"))
    assert "does not speak TLS" in probe_fails(s3_root)


# The proxy itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "arrived"), [("kill before", False), ("kill after", True)])
def test_a_kill_is_told_the_address_of_the_live_connection(
    s3_root: str, s3_endpoint: str, kind: str, arrived: bool
) -> None:
    bucket, _ = plain(s3_root)
    behind = boto3.session.Session().client("s3")
    killed: list[tuple[str, int]] = []
    there: list[bool] = []

    def kill(address: tuple[str, int]) -> None:
        killed.append(address)
        there.append(behind.list_objects_v2(Bucket=bucket, Prefix="k")["KeyCount"] == 1)

    def decide(request: Request) -> Fault | None:
        return Fault(kind) if request.key == "k" else None

    with FaultProxy(s3_endpoint, decide, kill=kill) as proxy:
        client = http.client.HTTPConnection(f"127.0.0.1:{proxy.server_port}")
        client.request("PUT", f"/{bucket}/other", b"1")
        assert client.getresponse().read() == b""
        address = client.sock.getsockname()
        client.request("PUT", f"/{bucket}/k", b"1")
        with pytest.raises(ConnectionError):
            client.getresponse()
        assert killed == [address]
        assert there == [arrived]
        assert proxy.counts == {kind: 1}


def test_leaving_the_proxy_ends_its_stalls(s3_root: str, s3_endpoint: str) -> None:
    asked = threading.Event()

    def decide(request: Request) -> Fault:
        asked.set()
        return Fault("stall")

    with ThreadPoolExecutor(1) as pool:
        with FaultProxy(s3_endpoint, decide) as proxy:
            client = http.client.HTTPConnection(f"127.0.0.1:{proxy.server_port}")
            client.request("GET", f"/{plain(s3_root)[0]}/k")
            answer = pool.submit(client.getresponse)
            assert asked.wait(30)
        with pytest.raises(ConnectionError):
            answer.result(30)


def test_an_error_of_the_plan_is_raised_on_leaving_the_proxy(s3_endpoint: str) -> None:
    def decide(request: Request) -> Fault | None:
        raise RuntimeError("a plan that has run out")

    def ask() -> None:
        with FaultProxy(s3_endpoint, decide) as proxy:
            client = http.client.HTTPConnection(f"127.0.0.1:{proxy.server_port}")
            client.request("GET", "/bucket")
            with pytest.raises(ConnectionError):
                client.getresponse()

    with pytest.raises(RuntimeError, match="a plan that has run out"):
        ask()


@pytest.mark.parametrize("kind", ["flood", "200", "99", ""])
def test_unknown_faults_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="is unknown: give a status or one of"):
        Fault(kind)
