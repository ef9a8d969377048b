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
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

# Jobs of one name share the forkserver of a node, while any process is connected to it.
NAME_VARIABLE = "MEANCACHE_FORKSERVER"
# What an answer may take: modules are imported first, and from a cold disk it takes a while.
IMPORTS_S = 300.0
# What the rest of a request may take, once it has begun.
REQUEST_S = 30.0
# Libraries read these when they are imported: a process with other values is not served.
READ_AT_IMPORT = ("DIFFUSERS_", "HF_", "HUGGINGFACE_", "TORCH", "TRANSFORMERS_")

_NUMBER = struct.Struct("Q")
_CREDENTIALS = struct.Struct("3i")
# The socket of the fork, the pipe that ends it, and where its output and errors go.
_DESCRIPTORS = 4


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
    program = f"from cluster.fleet.forkserver import main; main({listener.fileno()}, {needs!r})"
    environment = {
        # As Ray has it for its workers, where nothing else is said.
        "OMP_NUM_THREADS": "1",
        **os.environ,
        # Whether there is a GPU is asked at import; only in this way it does no harm to forks.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
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


def main(listening: int, needs: Sequence[str]) -> None:
    """The life of a node's forkserver; those who connect meanwhile wait until all is imported.

    Args:
        listening: descriptor of its socket.
        needs: names of the modules to import.
    """
    if os.fork():  # whoever started it need not wait for its end, nor end it with its own
        os._exit(0)
    given = dict(os.environ)
    for module in needs:
        with suppress(ImportError):  # a rank will say so
            __import__(module)
    imports = _Imports(given, {key: os.environ[key] for key in set(os.environ) - set(given)})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=listening) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                else:
                    _serve(key.fileobj, selector, imports)
            if len(selector.get_map()) == 1 and not selector.select(0):
                return


@dataclass(frozen=True)
class _Imports:
    """The environment that modules were imported in, and the variables that they have set."""

    given: Mapping[str, str]
    made: Mapping[str, str]

    def same(self, environ: Mapping[str, str]) -> bool:
        """Whether a process with this environment would have imported the same."""

        def read(variables: Mapping[str, str]) -> dict[str, str]:
            return {key: variables[key] for key in variables if key.startswith(READ_AT_IMPORT)}

        return read(environ) == read(self.given)


def _serve(connection: Any, selector: selectors.BaseSelector, imports: _Imports) -> None:
    """Forks for a leader, or takes note that a process has gone."""
    try:
        connection.settimeout(REQUEST_S)
        wanted, descriptors = _received(connection)
    except (OSError, ValueError):
        selector.unregister(connection)
        connection.close()
        return
    pid = 0
    if imports.same(wanted["environ"]):
        pid = os.fork()
        if not pid:
            environ = {**imports.made, **wanted["environ"]}
            _become_a_leaders(environ, wanted["folder"], descriptors, selector)
    for descriptor in descriptors:
        os.close(descriptor)
    with suppress(OSError):
        connection.sendall(_NUMBER.pack(pid))


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request: what the fork is to be like, and its descriptors.

    Raises:
        OSError: the other end has gone.
        ValueError: it is no request, or from another user or container.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _NUMBER.size, _DESCRIPTORS)
    try:
        pid, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user != os.getuid() or _namespace(str(pid)) != _namespace("self"):
            raise ValueError("not of this user, or not of this container")
        if len(head) != _NUMBER.size or len(descriptors) != _DESCRIPTORS:
            raise ValueError("not a request")
        text = b""
        (length,) = _NUMBER.unpack(head)
        while len(text) < length:
            more = connection.recv(length - len(text))
            if not more:
                raise ConnectionResetError
            text += more
        return json.loads(text), list(descriptors)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _namespace(pid: str) -> str:
    """What a process sees of files and of other processes."""
    return os.readlink(f"/proc/{pid}/ns/mnt") + os.readlink(f"/proc/{pid}/ns/pid")


def _become_a_leaders(
    environ: Mapping[str, str],
    folder: str,
    descriptors: Sequence[int],
    selector: selectors.BaseSelector,
) -> None:
    """The fork's life: it serves its leader, and never returns."""
    listening, alive, *streams = descriptors
    try:
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        selector.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        standard.main(listening, alive, [])
    except SystemExit:
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


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
        wanted = {"environ": dict(os.environ), "folder": os.getcwd()}
        text = json.dumps(wanted).encode()
        self._connection.settimeout(IMPORTS_S)
        socket.send_fds(self._connection, [_NUMBER.pack(len(text))], descriptors)
        self._connection.sendall(text)
        answer = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        pid = _NUMBER.unpack(answer)[0] if len(answer) == _NUMBER.size else 0
        if not pid:
            raise ConnectionRefusedError("the node's forkserver does not serve this process")
        return int(pid)

    def _forget(self) -> None:
        for descriptor in (self._process, self._forkserver_alive_fd):
            if descriptor is not None:
                os.close(descriptor)
        self._process = self._forkserver_alive_fd = self._forkserver_address = None


_kept: dict[tuple[str, ...], socket.socket] = {}


def keep(needs: tuple[str, ...]) -> None:
    """Starts the node's forkserver of this process's jobs, and keeps it until this process ends."""
    if needs and needs not in _kept:
        with suppress(OSError):  # leaders start their own
            _kept[needs] = connected(own_name(), needs)


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
