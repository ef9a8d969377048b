"""What audits in production say: whether a schedule's videos still come as close as they did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.results.audit import Audit
from meancache.quality import Summary

# Fewer rows than this in a half say nothing.
LEAST = 4
# Standard errors that a change must exceed to be reported: by chance, once in 700.
BEYOND = 3.0


@dataclass(frozen=True)
class Trend:
    """The audited rows of one schedule, in time.

    Attributes:
        schedule_id: whose rows they are.
        psnr: dB of all of them.
        earlier: dB of the first half; None where a half is smaller than LEAST.
        later: dB of the second half.
        promised: dB on held-out pairs when it was promoted, and the standard error; None where
            that is not known.
    """

    schedule_id: str
    count: int
    psnr: Summary
    earlier: Summary | None
    later: Summary | None
    promised: tuple[float, float] | None

    @property
    def warnings(self) -> list[str]:
        """What has become worse, in words."""
        found = []
        if (
            self.earlier is not None
            and self.later is not None
            and _below(self.later, self.earlier.mean, self.earlier.standard_error)
        ):
            found.append(f"falling: {self.later} dB lately, {self.earlier} dB before")
        if self.promised is not None and self.count >= LEAST and _below(self.psnr, *self.promised):
            mean, error = self.promised
            found.append(
                f"below what it was promoted with: {self.psnr} dB in production, "
                f"{mean:.1f} ± {error:.1f} dB on held-out pairs"
            )
        return found

    def __str__(self) -> str:
        said = "; ".join(self.warnings) or "as it was"
        return f"audits of schedule {self.schedule_id[:16]}, {self.count} rows: {said}"


def trends(audits: Iterable[Audit], promised: Mapping[str, tuple[float, float]]) -> list[Trend]:
    """One trend a schedule, that of the last rendered row last.

    Args:
        audits: of one render root or of several.
        promised: schedule id -> PSNR in dB when it was promoted, and its standard error.
    """
    rows: dict[str, list[float]] = {}
    for audit in sorted(audits, key=lambda one: one.created_at):
        # Popped and put back, so that the schedules stand in the order of their last rows.
        scores = rows.pop(audit.schedule_id, [])
        scores.append(audit.psnr)
        rows[audit.schedule_id] = scores
    return [_trend(name, scores, promised.get(name)) for name, scores in rows.items()]


def _trend(schedule_id: str, scores: list[float], promised: tuple[float, float] | None) -> Trend:
    half = len(scores) // 2
    enough = half >= LEAST
    return Trend(
        schedule_id=schedule_id,
        count=len(scores),
        psnr=Summary.of(scores),
        earlier=Summary.of(scores[:half]) if enough else None,
        later=Summary.of(scores[half:]) if enough else None,
        promised=promised,
    )


def _below(now: Summary, mean: float, error: float) -> bool:
    """Whether `now` is lower than a mean by more than both errors explain."""
    return mean - now.mean > BEYOND * math.hypot(now.standard_error, error)
