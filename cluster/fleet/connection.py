"""Joining a Ray cluster, or starting one where there is none."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import grpc
import ray
from ray._private import worker
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._private.services import find_bootstrap_address
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import RayError

from cluster.fleet.errors import FleetError
from cluster.fleet.forkserver import entrust
from cluster.fleet.ray_errors import told

ANSWER_S = 10.0

# What other programs of Ray take as RAY_ADDRESS.
_SCHEMES = {
    "ray": "is Ray Client's, from outside of a cluster: submit the job to the cluster instead, "
    "`ray job submit -- python -m jobs...`, or give HOST:PORT there",
    "http": "is the dashboard's, which takes `ray job submit`: unset RAY_ADDRESS or give the "
    "HOST:PORT of the cluster, mostly port 6379",
}


def connect(starting: Callable[[], None] = lambda: None) -> None:
    """Joins the cluster of RAY_ADDRESS or of this machine; where there is none, starts one.

    Args:
        starting: told before one is started.

    Raises:
        FleetError: there is no such cluster, it does not answer, or it does not let this process
            in. Ray itself would try for a quarter of an hour.
    """
    if ray.is_initialized():
        return
    address, source = _address()
    if address is not None:
        _check_answers(address, source)
    else:
        starting()
    try:
        with nullcontext() if address else small():
            # What ranks print belongs to Ray's own logs; a job's log is its driver's.
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except Exception as error:  # bare ones too, as where Ray waits too long for its own start
        where = "no Ray cluster can be started here" if address is None else f"Ray at {address}"
        raise FleetError(f"{where}: {told(error)}") from error
    if address is None:
        atexit.register(end)
        entrust(_children(worker._global_node))


@contextmanager
def small() -> Iterator[None]:
    """Starts of Ray without what serves other machines and people: they take seconds of a core."""
    with ExitStack() as stack:
        for name in ("start_monitor", "start_api_server", "start_log_monitor"):
            stack.enter_context(mock.patch.object(Node, name, return_value=None))
        yield


def end() -> None:
    """Ends the cluster that this process started, at once: nothing that matters is in it.

    Ray itself would give each of its processes a second, one after the other.
    """
    node = worker._global_node
    if not ray.is_initialized() or node is None:
        return
    workers = _children(node)
    kill = node.kill_all_processes
    node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)
    ray.shutdown()
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(node: Node | None) -> list[int]:
    """What Ray's node manager has started, its agents among them: they would stay for a minute."""
    found: list[int] = []
    for manager in () if node is None else node.all_processes.get(PROCESS_TYPE_RAYLET, ()):
        for task in Path(f"/proc/{manager.process.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def _address() -> tuple[str | None, str]:
    """The cluster that Ray would join, or None where it would start one; and where that is from."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given == "local":
        return None, ""
    if given in ("", "auto"):
        found = find_bootstrap_address(None)
        if found is None and given:
            raise FleetError(
                "RAY_ADDRESS is 'auto', and no cluster runs on this machine: unset it, and the job "
                "starts one, or give the HOST:PORT of one"
            )
        # As Ray does for a cluster of this machine, and for no other.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        return found, "the last that `ray start` began here; `ray stop` forgets it"
    scheme, separator, _ = given.partition("://")
    if separator:
        reason = _SCHEMES.get(scheme.removesuffix("s"), "is none that a job takes: give HOST:PORT")
        raise FleetError(f"RAY_ADDRESS {given!r}: {scheme}:// {reason}")
    return given, "of RAY_ADDRESS"


def _check_answers(address: str, source: str) -> None:
    """Raises FleetError where no cluster takes connections there, or not from this process."""
    try:
        place = urlsplit(f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:  # a port that is no number
        host = port = None
    if host is None or port is None:
        raise FleetError(f"RAY_ADDRESS {address!r} must be HOST:PORT, 'auto' or 'local'")
    alone = "RAY_ADDRESS=local starts one for this job alone"
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        raise FleetError(
            f"no Ray cluster answers at {address} ({source}): {error.strerror or error}; {alone}"
        ) from error
    try:
        with init_grpc_channel(address) as channel:
            _ask(channel)
    except RayError as error:  # this process has no token where it needs one
        raise FleetError(f"Ray at {address} ({source}): {told(error)}") from error
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise FleetError(
                f"the Ray cluster at {address} ({source}) does not let this job in: "
                f"{error.details()}. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's "
                "token, or submit the job with `ray job submit`"
            ) from error
        raise FleetError(
            f"what answers at {address} ({source}) is no Ray cluster: {error.details()}; {alone}"
        ) from error
    if is_token_auth_enabled() and _lets_anyone_in(address):
        # Its calls carry no token, and this process would turn them all away.
        raise FleetError(
            f"the Ray cluster at {address} ({source}) was started without authentication, and "
            "RAY_AUTH_MODE or a token in ~/.ray makes this job ask for a token: set "
            "RAY_AUTH_MODE=disabled for the job, or start the cluster anew with "
            "RAY_AUTH_MODE=token"
        )


def _ask(channel: grpc.Channel) -> None:
    """Asks the cluster for its id. Raises grpc.RpcError."""
    NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=ANSWER_S)


def _lets_anyone_in(address: str) -> bool:
    """Whether the cluster answers without a token."""
    try:
        with grpc.insecure_channel(address) as channel:
            _ask(channel)
    except grpc.RpcError:
        return False
    return True
