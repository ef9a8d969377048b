"""The life of a node's forkserver, see `forkserver`: it imports, and then it forks."""

from __future__ import annotations

import gc
import json
import multiprocessing.forkserver as standard
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the rest of a request may take, once it has begun.
REQUEST_S = 30.0
# An environment is no larger.
MOST_BYTES = 2**24
# Libraries read these when they are imported: a process with other values is not served.
READ_AT_IMPORT = ("DIFFUSERS_", "HF_", "HUGGINGFACE_", "TORCH", "TRANSFORMERS_")
NUMBER = struct.Struct("Q")
# Ray has its workers killed first where memory runs out.
OOM_SCORE = Path("/proc/self/oom_score_adj")

_CREDENTIALS = struct.Struct("3i")
# The socket of the fork, the pipe that ends it, and where its output and errors go.
_DESCRIPTORS = 4


def main(listening: int, needs: Sequence[str]) -> None:
    """The life of a node's forkserver; those who connect meanwhile wait until all is imported.

    Args:
        listening: descriptor of its socket.
        needs: names of the modules to import.
    """
    if os.fork():  # whoever started it need not wait for its end, nor end it with its own
        os._exit(0)
    given = dict(os.environ)
    gc.disable()  # modules stay: to look for garbage among them takes a fifth of the time
    for module in needs:
        with suppress(ImportError):  # a rank will say so
            __import__(module)
    gc.freeze()
    gc.enable()
    imports = _Imports(given, {key: os.environ[key] for key in set(os.environ) - set(given)})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=listening) as listener, selectors.DefaultSelector() as selector:
        _Server(listener, selector, imports).run()


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


class _Server:
    """Serves its connections until the last is closed."""

    def __init__(
        self, listener: socket.socket, selector: selectors.BaseSelector, imports: _Imports
    ) -> None:
        self._listener, self._selector, self._imports = listener, selector, imports
        # Processes that end with a connection, by their ids: when they were started.
        self._entrusted: dict[Any, dict[str, int]] = {}

    def run(self) -> None:
        """Until nobody is connected."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._serve(key.fileobj)
            if len(self._selector.get_map()) == 1 and not self._selector.select(0):
                return

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if _is_ours(connection):
            self._selector.register(connection, selectors.EVENT_READ)
        else:
            connection.close()

    def _serve(self, connection: Any) -> None:
        try:
            connection.settimeout(REQUEST_S)
            wanted, descriptors = _received(connection)
        except (OSError, ValueError):
            self._leave(connection)
            return
        if not descriptors:
            self._entrusted[connection] = wanted["entrusted"]
            return
        pid = 0
        if self._imports.same(wanted["environ"]):
            pid = os.fork()
            if not pid:
                wanted["environ"] = {**self._imports.made, **wanted["environ"]}
                _become_a_leaders(wanted, descriptors, self._selector)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(OSError):
            connection.sendall(NUMBER.pack(pid))

    def _leave(self, connection: Any) -> None:
        """The process at the other end is gone, or does not keep to the protocol."""
        self._selector.unregister(connection)
        connection.close()
        for pid, started in self._entrusted.pop(connection, {}).items():
            if start_time(int(pid)) == started:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def start_time(pid: int) -> int | None:
    """When a process was started, by the kernel's clock; None where there is none."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request: what a fork is to be like, and its descriptors; or what is entrusted.

    Raises:
        OSError: the other end has gone.
        ValueError: it is no request.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, NUMBER.size, _DESCRIPTORS)
    try:
        if len(head) != NUMBER.size or len(descriptors) not in (0, _DESCRIPTORS):
            raise ValueError("not a request")
        text = b""
        (length,) = NUMBER.unpack(head)
        if length > MOST_BYTES:
            raise ValueError("not a request")
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


def _is_ours(connection: socket.socket) -> bool:
    """Whether a process of this user, and of this container, is at the other end."""
    pid, user, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    with suppress(OSError):
        return bool(user == os.getuid() and _namespace(str(pid)) == _namespace("self"))
    return False  # it has gone


def _namespace(pid: str) -> str:
    """What a process sees of files and of other processes."""
    return os.readlink(f"/proc/{pid}/ns/mnt") + os.readlink(f"/proc/{pid}/ns/pid")


def _become_a_leaders(
    wanted: Mapping[str, Any], descriptors: Sequence[int], selector: selectors.BaseSelector
) -> None:
    """The fork's life: it serves its leader, as a child of its own would, and never returns."""
    listening, alive, *streams = descriptors
    try:
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        selector.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.nice(max(0, wanted["nice"] - os.nice(0)))
        with suppress(OSError):
            OOM_SCORE.write_text(wanted["oom_score"])
        os.chdir(wanted["folder"])
        os.environ.clear()
        os.environ.update(wanted["environ"])
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
