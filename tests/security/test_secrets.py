"""Credentials stay in the environment: none in a log, a message, a pickle or anything written."""

import io
import logging
import pickle
import socket
import traceback
from urllib.parse import quote

import boto3
import pyarrow.parquet as pq
import pytest

from cluster.fleet.delivery import Delivery
from cluster.fleet.gang import Gang
from cluster.fleet.staged_gang import StagedGang
from cluster.ranks import rank_builder
from cluster.results.manifest import Manifest
from cluster.store import StoreError, open_store, read
from cluster.work import plan
from jobs.render import __main__ as render
from jobs.render.workflow import prepare
from tests.support.configs import configured

KEY_ID = "AKIAFAKEFAKEFAKEFAKE"
SECRET = "fake+Secret/ofNobody0123456789abcdefABCD"
TOKEN = "fake-session-token//of+nobody=="
PATTERNS = (KEY_ID, SECRET, quote(SECRET, safe=""), TOKEN, quote(TOKEN, safe=""), "X-Amz-", "AWS4-")
LOGGERS = ("", "boto3", "botocore", "urllib3", "s3transfer", "cluster", "jobs")


def assert_no_secret(data: bytes | str) -> None:
    """Fails where credentials, or what a signed request shows of them, are in the data."""
    text = data if isinstance(data, str) else data.decode("latin-1")
    for pattern in PATTERNS:
        assert pattern not in text, f"{pattern} in {text[:2000]!r}"


@pytest.fixture
def credentials(s3_endpoint, monkeypatch, caplog):
    """Fake credentials in the environment, and every logger at DEBUG."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, name)


def test_the_search_finds_what_botocore_logs_by_itself(credentials, s3_root, caplog):
    bucket = s3_root.removeprefix("s3://").partition("/")[0]
    boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket)
    for pattern in (KEY_ID, TOKEN):
        assert pattern in caplog.text
    with pytest.raises(AssertionError):
        assert_no_secret(caplog.text)


def test_a_job_leaves_no_secret_behind(credentials, s3_root, tmp_path, caplog, capfd):
    (tmp_path / "p.txt").write_text("a red circle\na blue square\n")
    command = ["--model", "tiny", "--steps", "2", "--prompts", str(tmp_path / "p.txt")]
    job = prepare(configured("render", [*command, "--output", s3_root]))
    plan.freeze(job.store, job.spec)
    manifest = Manifest(job.store)
    deliver = Delivery(manifest, job.model, job.schedule)
    with Gang(rank_builder(job.model), 1) as gang:
        rows = [deliver(StagedGang(gang, gang), item) for item in job.items]
    manifest.close_shard(0, job.items)
    manifest.finish([0])
    keys = list(job.store.list())
    assert len(keys) == 7  # job.json, two videos, two receipts, a part and _SUCCESS
    for key in keys:
        data = job.store.get(key)
        assert_no_secret(data)
        if key.endswith(".parquet"):
            assert_no_secret(str(pq.read_table(io.BytesIO(data)).to_pylist()))
    for thing in (job, job.store, manifest, deliver, rows):
        assert_no_secret(pickle.dumps(thing))
        assert_no_secret(repr(thing))
    assert caplog.records
    assert_no_secret(caplog.text)
    said = capfd.readouterr()
    assert_no_secret(said.out + said.err)


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def endpoint_of(case: str, s3_endpoint: str, strict_s3_endpoint: str) -> str:
    return {
        "a bucket that does not exist": s3_endpoint,
        "a closed port": closed_port(),
        "credentials that the server does not know": strict_s3_endpoint,
        "an endpoint that is no URL": f"{KEY_ID}:{SECRET}@nowhere",
        "an endpoint with credentials in it": closed_port().replace("//", f"//{KEY_ID}:{TOKEN}@"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "a bucket that does not exist",
        "a closed port",
        "credentials that the server does not know",
        "an endpoint that is no URL",
        "an endpoint with credentials in it",
    ],
)
def test_no_failure_says_a_secret(
    credentials, s3_endpoint, strict_s3_endpoint, monkeypatch, caplog, capfd, tmp_path, case
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_of(case, s3_endpoint, strict_s3_endpoint))
    root = "s3://no-such-bucket/prefix"
    store = open_store(root)
    for use in (store.probe, lambda: read(f"{root}/prompts.txt")):
        with pytest.raises(StoreError) as failure:
            use()
        error = failure.value
        assert_no_secret("".join(traceback.format_exception(error)))
        assert_no_secret(pickle.dumps(error))
        assert_no_secret(repr(error.__context__) + repr(error.__cause__))
        assert_no_secret(pickle.dumps(store))
    (tmp_path / "p.txt").write_text("a red circle\n")
    command = ["--model", "tiny", "--prompts", str(tmp_path / "p.txt"), "--output", root]
    assert render.main(command) == 2
    said = capfd.readouterr()
    assert "error: " in said.err
    assert_no_secret(said.out + said.err)
    assert_no_secret(caplog.text)
