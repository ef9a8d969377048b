"""A cluster that cannot be joined is named at once, with the reason and the remedy."""

import os
import socket
import subprocess
import sys
import tempfile

import pytest
import ray

from cluster.fleet import connection
from cluster.fleet.errors import FleetError
from tests.support.autoscaler import free_port
from tests.support.processes import gone

TOKEN = "a" * 64


@pytest.fixture
def refusing() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def no_cluster(monkeypatch):
    """This process has no cluster, and may start none."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("joined"))


@pytest.mark.usefixtures("no_cluster")
def test_an_address_where_nobody_listens_is_named(monkeypatch, refusing):
    monkeypatch.setenv("RAY_ADDRESS", refusing)
    with pytest.raises(FleetError, match=rf"{refusing} \(of RAY_ADDRESS\): Connection refused"):
        connection.connect()


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("address", ["head", "head:port", "10.0.0.1:", ":6379"])
def test_an_address_that_is_none_is_refused_with_the_rule(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FleetError, match=f"'{address}' must be HOST:PORT"):
        connection.connect()


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://head:10001", "is Ray Client's"),
        ("http://127.0.0.1:8265", "is the dashboard's"),
        ("https://ray.example.org", "is the dashboard's"),
        ("anyscale://cluster", "is none that a job takes"),
    ],
)
def test_a_scheme_of_another_program_is_refused_with_its_use(monkeypatch, address, reason):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FleetError, match=f"{address}.*{reason}"):
        connection.connect()


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("given", ["", "auto"])
def test_a_cluster_that_crashed_here_is_told_how_to_forget(monkeypatch, refusing, given):
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr(connection, "find_bootstrap_address", lambda _: refusing)
    with pytest.raises(FleetError, match=r"`ray stop` forgets it"):
        connection.connect()


@pytest.mark.usefixtures("no_cluster")
def test_auto_starts_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(connection, "find_bootstrap_address", lambda _: None)
    with pytest.raises(FleetError, match="no cluster runs on this machine"):
        connection.connect()


@pytest.mark.usefixtures("no_cluster")
def test_a_server_that_is_no_ray_cluster_is_said_to_be_none(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_S", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(FleetError, match=r"what answers at .* is no Ray cluster"):
            connection.connect()


@pytest.mark.parametrize("given", ["", "local"])
def test_where_there_is_none_one_is_started(monkeypatch, given):
    started = []
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr(connection, "find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: started.append(1))
    connection.connect()
    assert started == [1]


def test_a_reason_that_ray_gives_is_told(monkeypatch):
    def refuse(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 1.0")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(FleetError, match=r"Version mismatch.*Ray: 1\.0"):
        connection.connect()


def test_a_cluster_without_tokens_refuses_a_job_that_asks_for_them(shared_cluster):
    job = subprocess.run(
        [sys.executable, "-c", "from cluster.fleet.connection import connect; connect()"],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        capture_output=True,
        text=True,
    )
    assert f"{shared_cluster} (of RAY_ADDRESS) was started without authentication" in job.stderr
    assert "set RAY_AUTH_MODE=disabled for the job" in job.stderr


@pytest.fixture
def short_folder():
    """A folder whose path leaves room for Ray's sockets in the 107 bytes of their addresses."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        yield folder


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_says_so(short_folder):
    """A real cluster with Ray's token authentication, and a job without its token."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(
            f"--port={port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            f"--temp-dir={short_folder}",
        ),
    ]
    head = subprocess.Popen(
        command,
        env={**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("--block" in line for line in head.stdout), "the cluster does not start"
        program = "from cluster.fleet.connection import connect; connect()"
        job = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
        )
        assert f"{address} (of RAY_ADDRESS) does not let this job in" in job.stderr
    finally:
        head.terminate()
        head.wait()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_nothing_of_a_ray_that_a_job_started_outlives_it_for_long(end):
    program = (
        "import os, psutil\n"
        "from cluster.fleet import forkserver\n"
        "from cluster.fleet.connection import connect\n"
        "forkserver.keep(('json',))\n"
        "connect()\n"
        "print(*(one.pid for one in psutil.Process().children(recursive=True)), flush=True)\n"
        f"{end}\n"
    )
    job = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    left = [int(pid) for pid in job.stdout.split()]
    assert len(left) >= 4  # two servers and two agents
    assert all(gone(pid) for pid in left)
