"""Nodes of a Ray cluster that see other disks than the driver: real raylets, own mount namespaces.

Needs root, or a sandbox that lets `unshare -m` and `mount` pass; `why_not` says why it cannot.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_UNSHARED = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]


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


def read_only(folder: Path) -> str:
    """Mounts: the node may only read what is there."""
    place = shlex.quote(str(folder))
    return f"mount --bind {place} {place} && mount -o remount,ro,bind {place}"


def small_disk(folder: Path) -> str:
    """A mount: the node has a disk of 4 MiB there, for `fill`."""
    return f"mount -t tmpfs -o size=4m tmpfs {shlex.quote(str(folder))}"


def fill(root: Path, folder: Path) -> None:
    """Fills the node's disk at `folder`, but for a few kilobytes that small files still fit in.

    Args:
        root: of the node's files, from `node`.
        folder: where its small disk is mounted.
    """
    with (root / str(folder).lstrip("/") / "filler").open("wb", 0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(file.tell() - 16 * 1024)


def places_of(package: str) -> list[Path]:
    """The folders where a package is found, or would be if it were not found before."""
    places = {Path(entry) / package for entry in sys.path}
    # Editable installs have finders of their own.
    finders = [getattr(module, "MAPPING", {}) for module in list(sys.modules.values())]
    places |= {Path(found[package]) for found in finders if package in found}
    return sorted({place.resolve() for place in places if place.is_dir()})


@contextmanager
def node(address: str, mounts: Sequence[str], options: Sequence[str]) -> Iterator[Path]:
    """A node that has joined the cluster at `address`, after its mounts; killed at the end.

    Args:
        address: of the cluster.
        mounts: shell commands, run before.
        options: more for `ray start`.

    Yields:
        Where this process sees the node's files.
    """
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
        yield Path(f"/proc/{raylet.pid}/root")
    finally:
        raylet.terminate()
        raylet.wait()
