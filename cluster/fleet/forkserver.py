"""The process that the ranks of a node are forked from: it has imported torch and diffusers, once.

    the node's forkserver    started by the driver beside Ray, or by the node's first leader
      a leader's forkserver  a fork of it, which is multiprocessing's own from there on
        ranks                forks of that

A leader's forkserver ends with the leader, in whatever way that ends, and its ranks end with it.
The node's ends with the last process that is connected to it. Where it cannot be had, a leader
starts a forkserver that imports for it alone. Knows neither Ray nor torch.
"""

from __future__ import annotations

import functools
import json
import multiprocessing.forkserver as standard
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

from cluster.fleet.forkserver_process import NUMBER, OOM_SCORE, start_time

# Jobs of one name share the forkserver of a node, while any process is connected to it.
NAME_VARIABLE = "MEANCACHE_FORKSERVER"
# What ranks need in their environment before torch is imported.
RANK_ENVIRONMENT = {
    # Whether there is a GPU is asked at import; only in this way it does no harm to forks.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # On a CPU large tensors are put in huge pages: the same numbers, but `tiny` decodes a video in
    # half the time, as the kernel hands out far fewer pages.
    "THP_MEM_ALLOC_ENABLE": "1",
}
# What an answer may take: modules are imported first, and from a cold disk it takes a while.
IMPORTS_S = 300.0


@functools.cache
def own_name() -> str:
    """The name of this process's jobs: the variable's, or one that nobody else has."""
    return os.environ.get(NAME_VARIABLE) or secrets.token_hex(8)


def connected(name: str, needs: Sequence[str]) -> socket.socket:
    """A connection to the node's forkserver, which is started where there is none.

    Args:
        name: of the jobs that it is for.
        needs: names of the modules that it imports.

    Raises:
        OSError: it can be neither reached nor started.
    """
    # Only one process can bind this address, and that one starts the forkserver.
    address = f"\0meancache-{name}-{zlib.crc32(repr(tuple(needs)).encode()):08x}"
    connection = socket.socket(socket.AF_UNIX)
    try:
        try:
            connection.connect(address)
        except ConnectionRefusedError:
            with socket.socket(socket.AF_UNIX) as listener:
                first = _binds(listener, address)
                connection.connect(address)
                if first:
                    _start(listener, needs)
    except OSError:
        connection.close()
        raise
    return connection


def _binds(listener: socket.socket, address: str) -> bool:
    try:
        listener.bind(address)
    except OSError:  # another process was faster
        return False
    listener.listen()
    return True


def _start(listener: socket.socket, needs: Sequence[str]) -> None:
    call = f"main({listener.fileno()}, {tuple(needs)!r})"
    program = f"from cluster.fleet.forkserver_process import main; {call}"
    environment = {
        # As Ray has it for its workers, where nothing else is said.
        "OMP_NUM_THREADS": "1",
        **os.environ,
        **RANK_ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    nowhere = subprocess.DEVNULL
    done = subprocess.run(
        [sys.executable, "-c", program],
        pass_fds=[listener.fileno()],
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
        env=environment,
        start_new_session=True,  # Ctrl-C in a terminal is meant for the driver
        check=False,
    )
    if done.returncode:
        raise ConnectionError("the node's forkserver does not start")


class _Leaders(standard.ForkServer):
    """A leader's forkserver, as multiprocessing's own but for how it starts."""

    _lock: threading.Lock
    _forkserver_address: str | None
    _forkserver_alive_fd: int | None

    def __init__(self, name: str, needs: Sequence[str]) -> None:
        super().__init__()
        self._place = name, tuple(needs)
        self._connection: socket.socket | None = None
        self._process: int | None = None  # descriptor, readable when it has ended

    def ensure_running(self) -> None:
        """Raises OSError where the node's forkserver does not serve this process."""
        with self._lock:
            resource_tracker.ensure_running()
            if self._process is not None:
                if not select.select([self._process], [], [], 0)[0]:
                    return
                self._forget()
            self._ask()

    def _ask(self) -> None:
        if self._connection is None:
            self._connection = connected(*self._place)
        address = f"\0meancache-{secrets.token_hex(16)}"
        reading, writing = os.pipe()
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(address)
                listener.listen()
                process = os.pidfd_open(self._forked([listener.fileno(), reading, 1, 2]))
        except OSError:
            os.close(writing)
            self._connection.close()
            self._connection = None
            raise
        finally:
            os.close(reading)
        self._forkserver_address, self._forkserver_alive_fd = address, writing
        self._process = process

    def _forked(self, descriptors: Sequence[int]) -> int:
        """The process id of a new fork with these descriptors."""
        assert self._connection is not None
        self._connection.settimeout(IMPORTS_S)
        wanted = {
            "environ": dict(os.environ),
            "folder": os.getcwd(),
            "nice": os.nice(0),
            "oom_score": OOM_SCORE.read_text(),
        }
        _request(self._connection, wanted, descriptors)
        answer = self._connection.recv(NUMBER.size, socket.MSG_WAITALL)
        pid = NUMBER.unpack(answer)[0] if len(answer) == NUMBER.size else 0
        if not pid:
            raise ConnectionRefusedError("the node's forkserver does not serve this process")
        return int(pid)

    def _forget(self) -> None:
        for descriptor in (self._process, self._forkserver_alive_fd):
            if descriptor is not None:
                os.close(descriptor)
        self._process = self._forkserver_alive_fd = self._forkserver_address = None


def _request(
    connection: socket.socket, wanted: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> None:
    text = json.dumps(wanted).encode()
    if descriptors:
        socket.send_fds(connection, [NUMBER.pack(len(text))], descriptors)
    else:
        connection.sendall(NUMBER.pack(len(text)))
    connection.sendall(text)


_kept: dict[tuple[str, ...], socket.socket] = {}


def keep(needs: tuple[str, ...]) -> None:
    """Starts the node's forkserver of this process's jobs, and keeps it until this process ends."""
    if needs and needs not in _kept:
        with suppress(OSError):  # leaders start their own
            _kept[needs] = connected(own_name(), needs)


def entrust(pids: Sequence[int]) -> None:
    """Has other processes of this node killed when this one has ended, in whatever way."""
    started = {pid: when for pid in pids if (when := start_time(pid))}
    for connection in _kept.values():
        with suppress(OSError):
            _request(connection, {"entrusted": started})


def join(name: str, needs: Sequence[str]) -> None:
    """Lets this process's gangs fork their ranks from the node's forkserver, where it can be had.

    Args:
        name: as `connected` has it.
        needs: likewise.
    """
    mine, alone = _Leaders(name, needs), standard.connect_to_new_process

    def connect(descriptors: Sequence[int]) -> tuple[int, int]:
        try:
            return mine.connect_to_new_process(descriptors)
        except OSError:
            return alone(descriptors)

    module: Any = standard
    module.connect_to_new_process = connect
