"""A Ray cluster that scales from zero: a real head, autoscaler and raylets, on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

HEAD = "head"


def config(address: str, kinds: dict[str, Any]) -> dict[str, Any]:
    """What `ray start --autoscaling-config` takes, for nodes that are raylets on this machine."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands")
    more = ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "from-zero",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {**kinds, HEAD: head},
        "head_node_type": HEAD,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{name: [] for name in (*lists, *more)},
    }


def free_port() -> int:
    """A port where nobody listens now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@contextmanager
def scaled_cluster(folder: Path, kinds: dict[str, Any]) -> Iterator[str]:
    """The address of a cluster with nothing but a head, which may start nodes of these kinds.

    Args:
        folder: for its configuration.
        kinds: of nodes, as 'available_node_types' has them.
    """
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(config(address, kinds)))
    head = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--port={port}", "--num-cpus=0", "--include-dashboard=false"),
            *("--object-store-memory=100000000", f"--autoscaling-config={file}"),
        ],
        env={
            **os.environ,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_AUTH_MODE": "disabled",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert head.stdout is not None
    try:
        said = []
        for line in head.stdout:
            said.append(line)
            if "--block" in line:
                break
        else:
            raise RuntimeError("".join(said))
        yield address
    finally:
        # Asked to end, it would drain its nodes for half a minute.
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
