"""Says how training goes: a line now and then with the time left, and the loss curve as CSV."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path


class Progress:
    """Averages losses over windows; prints each window and keeps it for the loss curve."""

    def __init__(self, curve: Path, every: int = 50) -> None:
        self._curve = curve
        self._every = every
        self._started: dict[str, float] = {}
        self._window: list[float] = []

    def step(self, phase: str, step: int, iterations: int, loss: float) -> None:
        """Notes one iteration's loss. Raises FloatingPointError where it is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(f"{phase}: loss is {loss} at iteration {step}; lower its rate")
        started = self._started.setdefault(phase, time.monotonic())
        self._window.append(loss)
        done = step + 1
        if done % self._every and done != iterations:
            return
        mean = sum(self._window) / len(self._window)
        self._window.clear()
        elapsed = time.monotonic() - started
        left = elapsed / done * (iterations - done)
        print(
            f"{phase:8s} {done:5d}/{iterations}  loss {mean:.5f}  "
            f"{elapsed:6.0f} s, about {left:.0f} s left",
            flush=True,
        )
        with self._curve.open("a", newline="") as file:
            csv.writer(file).writerow([phase, done, f"{mean:.6f}"])
