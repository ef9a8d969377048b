"""A proxy in front of any S3 server that does to chosen requests what networks and stores do.

    with FaultProxy("http://127.0.0.1:5000", decide) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        ...
    proxy.counts                                      # {"lost ack": 2, "503": 1}

`decide` is asked about every request, one at a time, and answers with a `Fault` or None:

    400 ... 599     answer with this status and an S3 error code; the server never hears of it
    reset           close the connection; the server never hears of it
    corrupt up      flip a bit of the body on its way to the server
    lost ack        let the server do it, then close the connection without an answer
    truncate        close the connection half-way through the answer's body
    corrupt down    flip a bit of the answer's body
    stall           let the server do it, then say nothing until the client gives up
    kill before     kill the client; the server never hears of it
    kill after      kill the client when the server has done it and the client does not know yet

Knows bytes and HTTP; knows nothing of videos, receipts or of who the clients are: `kill` is given
the client's address, which is that of its live connection, and finds the process itself.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Address = tuple[str, int]

CODES = {
    "400": "BadRequest",
    "403": "AccessDenied",
    "409": "ConditionalRequestConflict",
    "429": "TooManyRequests",
    "500": "InternalError",
    "501": "NotImplemented",
    "503": "SlowDown",
}
KINDS = (
    *("reset", "corrupt up", "lost ack", "truncate", "corrupt down", "stall"),
    *("kill before", "kill after"),
)


@dataclass(frozen=True)
class Fault:
    """What to do to a request: a kind as listed above.

    `code` is the S3 error code of a status, if not the usual one. `at` is where in a body a bit is
    flipped, as a share of its length below 1.
    """

    kind: str
    code: str = ""
    at: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not (self.kind.isdecimal() and 400 <= int(self.kind) < 600):
            raise ValueError(f"fault {self.kind!r} is unknown: give a status or one of {KINDS}")
        if not 0 <= self.at < 1:
            raise ValueError(f"at {self.at} is outside the body: give a share from 0 to below 1")


@dataclass(frozen=True)
class Request:
    """What a client asks for; `key` is the path inside the bucket, '' for a list."""

    method: str
    bucket: str
    key: str
    query: str
    address: Address
    headers: dict[str, str] = field(repr=False)  # with lower-case names


Decide = Callable[[Request], Fault | None]
Kill = Callable[[Address], None]


class FaultProxy(ThreadingHTTPServer):
    """Serves from entering its `with` until leaving it, which ends every stall.

    `behind` is the URL of an S3 server, addressed by path. `tls` makes it an https:// server.
    `patience` is how many seconds a stall holds a client that does not give up; it is then closed
    without an answer. `counts` says how often each kind was done: a fault that cannot be (an empty
    body has no bit to flip) is passed on unharmed and not counted. What `decide` or `kill` raises
    closes the connection, and is raised again on leaving.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        behind: str,
        decide: Decide = lambda request: None,
        *,
        kill: Kill | None = None,
        tls: ssl.SSLContext | None = None,
        patience: float = 120,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(behind).netloc
        self.patience = patience
        self.tls = tls
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        self.counts: Counter[str] = Counter()
        self._decide = decide
        self._kill = kill
        self._errors: list[Exception] = []
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._live:  # wakes the threads that stall or wait for a request
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            if self._errors and kind is None:
                raise self._errors[0]

    def decide(self, request: Request) -> Fault | None:
        with self._lock, self._keeping_errors():
            return self._decide(request)

    def kill(self, address: Address) -> None:
        with self._keeping_errors():
            if self._kill is None:
                raise ValueError("a kill needs a function that does it: FaultProxy(kill=...)")
            self._kill(address)

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._errors.append(error)
            raise

    def did(self, fault: Fault) -> None:
        with self._lock:
            self.counts[fault.kind] += 1

    def live(self, connection: socket.socket, alive: bool) -> None:
        with self._lock:
            (self._live.add if alive else self._live.discard)(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up, die or distrust us are what we are here for."""


class _Handler(BaseHTTPRequestHandler):
    """One client's connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultProxy

    def setup(self) -> None:
        if self.server.tls:  # here and not in the one thread that accepts
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.server.live(self.request, True)
        super().setup()

    def finish(self) -> None:
        self.server.live(self.request, False)
        with suppress(OSError):
            super().finish()

    def pass_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client died: S3 refuses what breaks off
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        bucket, _, key = unquote(path).lstrip("/").partition("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, bucket, key, query, self.client_address, headers)
        fault = self.server.decide(request)
        if fault is None:
            self.answer(*self.ask(body))
        else:
            self.harm(fault, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on  # noqa: N815

    def harm(self, fault: Fault, body: bytes) -> None:
        """Do a fault to this request, and count it before the client can notice."""
        match fault.kind:
            case "reset" | "kill before":
                self.close_connection = True
                self.server.did(fault)
            case "lost ack" | "kill after" | "stall":
                self.close_connection = True
                self.ask(body)
                self.server.did(fault)
            case "corrupt up":
                if body:
                    self.server.did(fault)
                self.answer(*self.ask(_flip(body, fault.at)))
            case "truncate" | "corrupt down":
                self.harm_answer(fault, *self.ask(body))
            case status:
                self.server.did(fault)
                code = fault.code or CODES.get(status, "Unknown")
                content = f"<Error><Code>{code}</Code><Message>a fault</Message></Error>".encode()
                self.answer(int(status), {"Content-Type": "application/xml"}, content)
        if fault.kind.startswith("kill"):
            self.server.kill(self.client_address)
        if fault.kind == "stall":
            # Readable once the client has closed it, or the proxy's `__exit__` has shut it down.
            select.select([self.connection], [], [], self.server.patience)

    def harm_answer(
        self, fault: Fault, status: int, fields: dict[str, str], content: bytes
    ) -> None:
        sent = content
        if self.command == "GET" and content:
            self.server.did(fault)
            if fault.kind == "truncate":
                self.close_connection = True
                sent = content[: len(content) // 2]
            else:
                sent = _flip(content, fault.at)
        self.answer(status, fields, content, sent)

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of what the server behind answers."""
        onward = http.client.HTTPConnection(self.server.behind)
        try:
            # Not `Expect`: the client was told to go on, and we have the whole body.
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            onward.request(self.command, self.path, body, headers)
            answer = onward.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        finally:
            onward.close()

    def answer(
        self, status: int, fields: dict[str, str], content: bytes, sent: bytes | None = None
    ) -> None:
        """Answer the client, announcing `content` and sending `sent` instead where it is given."""
        self.send_response_only(status)
        for name, value in fields.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        if self.command == "HEAD":  # its answer tells the length of a body that does not follow
            self.send_header("Content-Length", fields.get("Content-Length", "0"))
            self.end_headers()
            return
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if sent is None else sent)

    def log_message(self, *_: object) -> None:
        pass


def _flip(data: bytes, at: float) -> bytes:
    """Return data with one bit of the byte at this share of it changed; nothing has no bits."""
    if not data:
        return data
    position = int(len(data) * at)
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
