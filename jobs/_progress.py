"""Progress with an ETA: one live line in a terminal, a plain line now and then in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

LOG_EVERY_S = 30.0

T = TypeVar("T")


def progress(
    results: Iterable[T], total: int, what: str, stream: TextIO | None = None
) -> Iterator[T]:
    """Passes `results` on and reports how many of `total` have come, how fast, how long still.

    Args:
        results: what is being waited for.
        total: how many there will be.
        what: 'videos', for the line.
        stream: where to; default standard error.
    """
    stream = stream or sys.stderr
    live = stream.isatty()
    started = time.monotonic()
    reported = started if live else float("-inf")
    print(f"{what}: 0/{total}, starting ranks", end="" if live else "\n", file=stream, flush=True)
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if live or done == total or now - reported >= LOG_EVERY_S:
            line = f"{what}: {done}/{total}, {_rate(done, total, now - started)}"
            print(f"\r\x1b[K{line}" if live else line, end="", file=stream)
            print(end="" if live and done < total else "\n", file=stream, flush=True)
            reported = now


def duration(seconds: float) -> str:
    """Seconds as people say them: '48 s', '12 min 5 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rate(done: int, total: int, elapsed: float) -> str:
    each = elapsed / done
    left = f"ETA {duration(each * (total - done))}" if done < total else "done"
    return f"{each:.2f} s each, {duration(elapsed)} so far, {left}"
