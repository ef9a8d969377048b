"""Whether a candidate replaces the current schedule: pairs of the same prompt and noise decide.

Knows rows of an evaluation and the history of a schedule; promotes nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from cluster.results.registry import Promotion
from meancache.quality import MOST_DECIBELS, Summary
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Trial:
    """A candidate's trial.

    Attributes:
        candidate: the new schedule.
        current: what it was compared with, on the same pairs; None where there was nothing.
        psnr: the candidate's dB against the full run, over held-out pairs.
        ssim: its mean SSIM.
        current_psnr: the current one's dB, or None.
        gain: dB that the candidate is ahead, pair by pair; None without a current one.
        pairs: how many there were.
    """

    candidate: Schedule
    current: Schedule | None
    psnr: Summary
    ssim: float
    current_psnr: Summary | None
    gain: Summary | None
    pairs: int

    @property
    def is_better(self) -> bool:
        """Ahead by more than the standard error of the difference, or where there is no other."""
        return self.gain is None or self.gain.mean > self.gain.standard_error

    @property
    def reason(self) -> str:
        """Why it is promoted or not, in words."""
        if self.gain is None:
            return (
                f"there was no current schedule yet; the candidate has {self.psnr} dB on "
                f"{self.pairs} pairs"
            )
        ahead = f"{self.gain.mean:+.2f} ± {self.gain.standard_error:.2f} dB on {self.pairs} pairs"
        if self.is_better:
            return f"it is better than the current one, {ahead}"
        return f"it is not better than the current one by more than the standard error: {ahead}"

    @property
    def metrics(self) -> dict[str, float]:
        """For the registry: numbers by name."""
        found = {
            "psnr": self.psnr.mean,
            "psnr_standard_error": self.psnr.standard_error,
            "psnr_worst": self.psnr.worst,
            "ssim": self.ssim,
            "nfe": float(self.candidate.nfe),
            "pairs": float(self.pairs),
        }
        if self.gain is not None:
            found |= {"gain": self.gain.mean, "gain_standard_error": self.gain.standard_error}
        return found


@dataclass(frozen=True)
class Decision:
    """What became of a trial.

    Attributes:
        trial: on which it was decided.
        promoted: whether the candidate is current, or was until somebody replaced it again.
        reason: why, in words.
        history: all promotions of its setting and budget, the oldest first.
    """

    trial: Trial
    promoted: bool
    reason: str
    history: Sequence[Promotion]

    def to_json(self) -> dict[str, Any]:
        """For a run's outcome."""
        current = self.trial.current
        return {
            "budget": self.trial.candidate.budget,
            "candidate": self.trial.candidate.id,
            "current": None if current is None else current.id,
            "promoted": self.promoted,
            "reason": self.reason,
            "metrics": self.trial.metrics,
        }


def judge(table: pa.Table, candidate: Schedule, current: Schedule | None) -> Trial:
    """Compares two schedules on an evaluation's pairs.

    Args:
        table: rows of an evaluation, at least two of the candidate's.
        candidate: the one that may be promoted.
        current: the one that it would replace.
    """
    psnr = _scores(table, candidate, "psnr")
    scores = list(psnr.values())
    before = None if current is None else _scores(table, current, "psnr")
    return Trial(
        candidate=candidate,
        current=current,
        psnr=Summary.of(scores),
        ssim=fmean(_scores(table, candidate, "ssim").values()),
        current_psnr=None if before is None else Summary.of([before[pair] for pair in psnr]),
        gain=None if before is None else Summary.of([psnr[pair] - before[pair] for pair in psnr]),
        pairs=len(scores),
    )


def _scores(table: pa.Table, schedule: Schedule, measure: str) -> Mapping[tuple[str, int], float]:
    """(prompt_id, seed) -> the schedule's `measure`; identical videos count MOST_DECIBELS."""
    rows = table.select(["schedule_id", "prompt_id", "seed", measure]).to_pylist()
    return {
        (row["prompt_id"], row["seed"]): min(row[measure], MOST_DECIBELS)
        for row in rows
        if row["schedule_id"] == schedule.id
    }
