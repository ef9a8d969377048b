"""SIGTERM to a driver: no more work is handed out, what is in flight may finish within a grace.

`ray job stop` and Kubernetes send SIGTERM, and SIGKILL when the grace is over. Since a commit may
be cut short anywhere without harm, the grace is an economy and not a condition of safety.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Ray's own variable, which `ray job stop` goes by; its default is 3 s.
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
DEFAULT_GRACE_S = 3.0
EXIT_TERMINATED = 128 + signal.SIGTERM
# Kept back of the grace, to say how to resume.
LAST_WORDS_S = 1.0


class Stopped(SystemExit):
    """The driver was asked to stop, and has: what is committed stays, the rest is open.

    A SystemExit, as it must pass whatever handles mere errors, Ray's own loops among them.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_TERMINATED)


class Drain:
    """Whether the driver was asked to stop, and whether its grace is over."""

    def __init__(self) -> None:
        self._until: float | None = None

    def request(self, *_: Any) -> None:
        """The handler of SIGTERM; a second one ends the grace."""
        grace = 0.0 if self.requested else max(0.0, grace_s() - LAST_WORDS_S)
        self._until = time.monotonic() + grace

    @property
    def requested(self) -> bool:
        """Whether nothing more should be handed out."""
        return self._until is not None

    @property
    def over(self) -> bool:
        """Whether what is still in flight should be left behind."""
        return self._until is not None and time.monotonic() >= self._until


def grace_s() -> float:
    """Seconds between SIGTERM and SIGKILL, as the job's environment has it."""
    try:
        return max(0.0, float(os.environ.get(GRACE_VARIABLE, DEFAULT_GRACE_S)))
    except ValueError:
        return DEFAULT_GRACE_S


@contextmanager
def draining() -> Iterator[Drain]:
    """Turns SIGTERM into a request to drain, while the context is open."""
    drain = Drain()
    with _on_sigterm(drain.request):
        yield drain


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGTERM raise `Stopped`, where nothing is in flight that could be drained."""

    def stop(*_: Any) -> None:
        raise Stopped

    with _on_sigterm(stop):
        yield


@contextmanager
def _on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only a main thread hears signals
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
