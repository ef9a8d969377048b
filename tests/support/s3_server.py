"""An S3 server for tests: moto over real HTTP in a process of its own, as strict as S3 itself.

    with serve_s3() as endpoint:
        os.environ.update(s3_environment(endpoint))

Knows nothing of pytest: the fixtures of conftest.py and the chaos command start the same server.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def serve_s3(**environment: str) -> Iterator[str]:
    """Yield the URL of an empty server; `environment` holds settings of moto."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            port = process.stdout.readline().strip()
            assert port, "moto did not start: pip install 'moto[server]'"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def direct() -> dict[str, str]:
    """Return what keeps requests to this machine from a proxy."""
    named = {os.environ.get(name) for name in ("NO_PROXY", "no_proxy")} - {None, ""}
    hosts = ",".join([*sorted(str(name) for name in named), "127.0.0.1"])
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the AWS_* variables (and NO_PROXY) that lead to a test server and nowhere else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **direct(),
    }


def as_strict_as_s3(moto: WSGI) -> WSGI:
    """Wrap moto so that it keeps two of S3's promises that it does not.

    A conditional put is one step: moto looks up a key and then writes it, in threads, so one
    request is let in at a time. An upload whose Content-MD5 is not its body's is refused: moto
    does not look at it.
    """
    turn = threading.Lock()

    def strict(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if md5 := environ.get("HTTP_CONTENT_MD5"):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if base64.b64encode(hashlib.md5(body).digest()).decode() != md5:
                start_response("400 Bad Request", [("Content-Type", "application/xml")])
                return [b"<Error><Code>BadDigest</Code></Error>"]
        with turn:
            return moto(environ, start_response)

    return strict


def main() -> None:
    """Serve until the parent's end of our stdin closes, so that no server outlives its tests."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    application = as_strict_as_s3(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
