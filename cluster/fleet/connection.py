"""Joining a Ray cluster, or starting one where there is none."""

from __future__ import annotations

import logging
import os
import socket
from urllib.parse import urlsplit

import ray
from ray._private.services import find_bootstrap_address

ANSWER_S = 10.0


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS or of this machine; where there is none, starts one.

    Raises:
        ConnectionError: the cluster does not answer. Ray itself would try for a quarter of an hour.
    """
    if ray.is_initialized():
        return
    _check_answers()
    ray.init(
        logging_level=logging.ERROR,
        # What ranks print belongs to Ray's own logs; a job's log is its driver's.
        log_to_driver=False,
        # Of a cluster that is started here: it would take seconds to start, and be gone with the
        # job.
        include_dashboard=False,
    )


def _check_answers() -> None:
    """Raises ConnectionError where the cluster that Ray would join does not take connections."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given == "local":
        return
    found = None if given in ("", "auto") else given
    address = found or find_bootstrap_address(None)
    if address is None:
        return
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = place.hostname, place.port
    except ValueError:  # a port that is no number
        host = port = None
    if host is None or port is None:
        raise ConnectionError(f"RAY_ADDRESS {address!r} must be HOST:PORT, 'auto' or 'local'")
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        whence = (
            "of RAY_ADDRESS"
            if found
            else "the last that `ray start` began here; `ray stop` forgets it"
        )
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({whence}): {error.strerror or error}; "
            "RAY_ADDRESS=local starts one for this job alone"
        ) from error
