"""Nodes of a Ray cluster that see other disks than the driver: real raylets, own mount namespaces.

Needs root, or a sandbox that lets `unshare -m` and `mount` pass; `why_not` says why it cannot.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_UNSHARED = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
# Far less than a leader's proof of the temporary folder.
_FULL_BYTES = 64 * 1024


def why_not() -> str | None:
    """Why mount namespaces cannot be had here; None where they can."""
    try:
        tried = subprocess.run(
            [*_UNSHARED, "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True
        )
    except OSError as error:
        return str(error)
    return tried.stderr.strip() or None if tried.returncode else None


def own_disk(folder: Path) -> str:
    """A mount: the node has an empty disk of its own there."""
    return f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}"


def full_disk(folder: Path) -> str:
    """A mount: the node has a disk there on which hardly a byte is free."""
    return f"mount -t tmpfs -o size={_FULL_BYTES} tmpfs {shlex.quote(str(folder))}"


def read_only_disk(folder: Path) -> str:
    """A mount: the node sees the folder, and cannot write to it."""
    place = shlex.quote(str(folder))
    return f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"


@contextmanager
def node(address: str, mounts: Sequence[str], options: Sequence[str]) -> Iterator[None]:
    """A node that has joined the cluster at `address`, after its mounts; killed at the end."""
    start = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block"),
        *("--num-cpus=1", "--object-store-memory=100000000", *options),
    ]
    raylet = subprocess.Popen(
        [*_UNSHARED, " && ".join([*mounts, f"exec {shlex.join(start)}"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert raylet.stdout is not None
    try:
        # Its last words, when it has joined.
        said = []
        for line in raylet.stdout:
            said.append(line)
            if "--block" in line:
                break
        else:
            raise RuntimeError("".join(said))
        yield
    finally:
        raylet.terminate()
        raylet.wait()
