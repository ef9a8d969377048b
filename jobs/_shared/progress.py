"""Progress with an ETA: one live line in a terminal, a plain line every half minute in a log."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TextIO, TypeVar

LOG_EVERY_S = 30.0
LIVE_EVERY_S = 1.0

T = TypeVar("T")


def progress(
    results: Iterable[T],
    total: int,
    what: str,
    stream: TextIO | None = None,
    first: str = ", starting ranks",
    also: Callable[[], str] = str,
) -> Iterator[T]:
    """Passes `results` on and reports how many of `total` have come, how fast, how long still.

    Says so also while none comes: a video may take minutes, and silence would look like a hang.

    Args:
        results: what is being waited for.
        total: how many there will be.
        what: 'videos', for the line.
        stream: where to; default standard error.
        first: what is being done until the first of them comes, for the line.
        also: what else there is to say, for the end of the line.
    """
    if total == 0:
        return
    line = _Line(total, what, stream or sys.stderr, first, also)
    line.say()
    with line:
        for result in results:
            yield result
            line.count()


class _Line:
    """What is said of a wait: by who gets results, and by a thread every now and then."""

    def __init__(
        self, total: int, what: str, stream: TextIO, first: str, also: Callable[[], str]
    ) -> None:
        self._total, self._what, self._first, self._also = total, what, first, also
        self._stream, self._live = stream, stream.isatty()
        self._done = 0
        self._started = self._first_at = self._last_at = time.monotonic()
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._live and self._done < self._total:
            print(file=self._stream, flush=True)  # whoever speaks next has a line of its own

    def count(self) -> None:
        """One more has come."""
        with self._turn:
            self._done += 1
            self._last_at = time.monotonic()
            if self._done == 1:
                self._first_at = self._last_at
            if self._done == self._total:
                self._over.set()  # the last line is said once, however long the end takes
            if self._live or self._done in (1, self._total):
                self._print()

    def say(self) -> None:
        """Says how it stands, unless all has been said."""
        with self._turn:
            if not self._over.is_set():
                self._print()

    def _print(self) -> None:
        text, begin, end = self._text(), "\r\x1b[K" if self._live else "", "\n"
        if self._live and self._done < self._total:
            # What a terminal breaks into two lines is not written over.
            text, end = text[: _columns(self._stream) - 1], ""
        print(f"{begin}{text}", end=end, file=self._stream, flush=True)

    def _text(self) -> str:
        now, also = time.monotonic(), self._also()
        elapsed = f", {duration(now - self._started)} so far"
        if not self._done:
            waited = elapsed if now - self._started >= LIVE_EVERY_S else ""
            return f"{self._what}: 0/{self._total}{also or self._first}{waited}"
        # The first result took the ranks' start too, which says nothing of the others.
        alone = self._done == 1
        span = self._last_at - (self._started if alone else self._first_at)
        each = span / max(1, self._done - 1)
        ahead = max(0.0, each * (self._total - self._done) - (now - self._last_at))
        within = "under " if alone else ""
        left = f"ETA {within}{duration(ahead)}" if self._done < self._total else "done"
        return f"{self._what}: {self._done}/{self._total}, {each:.2f} s each{elapsed}, {left}{also}"

    def _repeat(self) -> None:
        while not self._over.wait(LIVE_EVERY_S if self._live else LOG_EVERY_S):
            self.say()


def _columns(stream: TextIO) -> int:
    """Of the terminal that a stream leads to, which need not be that of standard output."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns
    return shutil.get_terminal_size().columns


def duration(seconds: float) -> str:
    """Seconds as people say them: '48 s', '12 min 5 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
