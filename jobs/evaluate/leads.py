"""PSNR pair by pair: what one method is ahead of another, on the same prompt and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from jobs.evaluate.results import Result
from meancache.quality import Summary

Key = tuple[str, str | None, int | None]
Pair = tuple[str, int]
Scores = Mapping[Key, Mapping[Pair, float]]


@dataclass(frozen=True)
class Lead:
    """A method beside another method on the same pairs.

    Attributes:
        other: what it is compared with.
        gain: dB ahead pair by pair, same prompt and noise; negative where behind.
    """

    other: Result
    gain: Summary


def key_of(one: Result) -> Key:
    """What tells its rows apart from those of others."""
    return (one.method, one.setting, one.budget)


def scores_of(table: pa.Table, measure: str) -> dict[Key, dict[Pair, float]]:
    """Method -> (prompt_id, seed) -> `measure`, in dB, where it was taken."""
    scores: dict[Key, dict[Pair, float]] = {}
    columns = ("method", "setting", "budget", "prompt_id", "seed", measure)
    for row in table.select(columns).to_pylist():
        if row[measure] is not None:
            key = (row["method"], row["setting"], row["budget"])
            scores.setdefault(key, {})[row["prompt_id"], row["seed"]] = row[measure]
    return scores


def lead_of(scores: Scores, mine: Result, other: Result | None) -> Lead | None:
    """Paired by prompt and noise, which shrinks the error to that of the difference."""
    if other is None:
        return None
    ours, theirs = scores.get(key_of(mine), {}), scores.get(key_of(other), {})
    # Where both equal the full run, neither is ahead: inf - inf would say NaN.
    gains = [
        0.0 if ours[pair] == theirs[pair] else ours[pair] - theirs[pair]
        for pair in ours
        if pair in theirs
    ]
    return Lead(other, Summary.of(gains)) if gains else None


def mean_psnr(one: Result) -> float:
    """dB; below all others where it was not measured."""
    return -math.inf if one.psnr is None else one.psnr.mean


def is_finite(summary: Summary | None) -> bool:
    """Whether it was measured, and is not that of identical videos."""
    return summary is not None and math.isfinite(summary.mean)
