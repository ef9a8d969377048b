"""The rows of an evaluation, summed up to one result a method.

Pure functions on one table. Knows nothing of how a row came about, nor of the page it ends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pyarrow as pa

from jobs.evaluate.table import FULL, OURS, PAPER, method_key, place
from meancache.quality import Summary
from meancache.schedule import Schedule

# It begins where `fitted` ends and takes gradients through the model: an upper bound to see what
# better weights would be worth, and named apart, as it is no other way to get there.
REFINED = "refined"
# Shares are ratios of whole FLOPs: two that are meant to be equal differ by rounding alone.
SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Result:
    """One method over all pairs.

    Attributes:
        method: 'fitted', 'paper', 'euler', ...; 'full' is the run that computes every step.
        setting: its knob in words, where it has one.
        source: whose code it is.
        budget: forwards it may take; None where its knob is not a budget.
        schedule_id: of the schedule it ran; None for what is not a schedule.
        pairs: how many (prompt, seed) it was judged on.
        nfe: mean transformer calls.
        share: mean share of the full run's transformer FLOPs; None where it was never counted.
        seconds: median of the denoising loop.
        speedup: median seconds of the full run over its own.
        psnr: dB against the full run; None for the full run.
        ssim: likewise.
        lpips: likewise, its worst the highest; None where LPIPS was absent.
        flip: likewise, its worst the highest.
        psnr_fine: dB against the fine solution; None where none was rendered.
        caption: share of the caption's facts shown; None for other models than the embedded one.
    """

    method: str
    setting: str | None
    source: str
    budget: int | None
    schedule_id: str | None
    pairs: int
    nfe: float
    share: float | None
    seconds: float
    speedup: float
    psnr: Summary | None
    ssim: Summary | None
    lpips: Summary | None
    flip: Summary | None
    psnr_fine: Summary | None
    caption: Summary | None

    @property
    def name(self) -> str:
        """In words: 'fitted, B=10', 'taylorseer (cache_interval 4)'."""
        return method_name(self.method, self.budget, self.setting)


def method_name(method: str, budget: int | None, setting: str | None) -> str:
    """A method in words: 'fitted, B=10', 'taylorseer (cache_interval 4)', 'full'."""
    forwards = "" if budget is None or method == FULL else f", B={budget}"
    return f"{method}{forwards}" + ("" if setting is None else f" ({setting})")


def results(table: pa.Table) -> list[Result]:
    """One result a method: ours first, then the paper's, the baselines by name, the full run last.

    The rows of a method stand by budget, or by compute where their knob is not a budget.

    Args:
        table: of SCHEMA.

    Raises:
        ValueError: the table has no row of the full run.
    """
    methods: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        methods.setdefault(method_key(row), []).append(row)
    full = [row["seconds"] for rows in methods.values() for row in rows if _is_full(row)]
    if not full:
        raise ValueError("the evaluation has no row of method 'full'; evaluate the full run too")
    found = [_result(methods[key], median(full)) for key in sorted(methods)]
    return sorted(found, key=lambda one: (*place(one.method), one.budget or 0, one.share or 0.0))


@dataclass(frozen=True)
class Margin:
    """How far one `fitted` schedule is ahead, in dB of mean PSNR against the full run.

    Attributes:
        fitted: the schedule's result.
        baseline: the best independent baseline at equal or less compute; None where there is none.
        paper: the best of the paper's variants at equal or less compute; None likewise.
        refined: the best that gradients made of a fitted schedule, at equal or less compute.
    """

    fitted: Result
    baseline: Result | None
    paper: Result | None
    refined: Result | None

    def over(self, other: Result) -> float:
        """dB ahead of `other`; negative where behind."""
        mine, theirs = _mean_psnr(self.fitted), _mean_psnr(other)
        return 0.0 if mine == theirs else mine - theirs  # both may be infinite

    def __str__(self) -> str:
        said = [
            self._against("independent baseline", self.baseline),
            self._against("paper's variant", self.paper),
            self._against("refinement of it by gradients", self.refined),
        ]
        known = "; ".join(sentence for sentence in said if sentence)
        return (
            f"{self.fitted.name}: {known or 'nothing else was measured at equal or less compute'}"
        )

    def _against(self, kind: str, other: Result | None) -> str:
        if other is None:
            return ""
        gain = self.over(other)
        place = f"ahead of every {kind}" if gain >= 0 else f"behind the best {kind}"
        return (
            f"{place} at equal or less compute by {abs(gain):.1f} dB "
            f"({other.name}: {_mean_psnr(other):.1f} dB)"
        )


def margins(found: Sequence[Result]) -> list[Margin]:
    """The margin of each `fitted` schedule, in the order of the results.

    Compute is the share of transformer FLOPs; a method that was not counted or not
    measured is left out.
    """
    kinds: dict[str, list[Result]] = {"baseline": [], "paper": [], "refined": []}
    for one in found:
        if one.method not in (*OURS, FULL):
            kinds[one.method if one.method in (PAPER, REFINED) else "baseline"].append(one)
    return [
        Margin(
            fitted=mine,
            **{
                kind: _best(other for other in others if _costs_no_more(other, mine))
                for kind, others in kinds.items()
            },
        )
        for mine in found
        if mine.method == "fitted" and mine.psnr is not None
    ]


def prediction_error(found: Sequence[Result], schedules: Sequence[Schedule]) -> Summary | None:
    """Measured minus predicted dB, over the schedules whose fidelity was predicted.

    Against the full run, or against the fine solution where a schedule was fitted to one.
    """
    by_id = {one.id: one for one in schedules if one.predicted_psnr is not None}
    errors = []
    for result in found:
        schedule = by_id.get(result.schedule_id or "")
        if schedule is not None and schedule.predicted_psnr is not None:
            fine = schedule.reference_steps != schedule.num_inference_steps
            measured = result.psnr_fine if fine else result.psnr
            if measured is not None and math.isfinite(measured.mean):
                errors.append(measured.mean - schedule.predicted_psnr)
    return Summary.of(errors) if errors else None


def _is_full(row: Mapping[str, Any]) -> bool:
    return row["method"] == FULL


def _result(rows: Sequence[Mapping[str, Any]], full_seconds: float) -> Result:
    known = {
        name: [row[name] for row in rows if row.get(name) is not None]
        for name in ("share", "psnr", "ssim", "lpips", "flip", "psnr_fine", "caption")
    }
    summaries = {name: Summary.of(known[name]) if known[name] else None for name in known}
    first = rows[0]
    seconds = median(row["seconds"] for row in rows)
    return Result(
        method=first["method"],
        setting=first["setting"],
        source=first["source"],
        budget=first["budget"],
        schedule_id=first["schedule_id"],
        pairs=len(rows),
        nfe=fmean(row["nfe"] for row in rows),
        share=fmean(known["share"]) if known["share"] else None,
        seconds=seconds,
        speedup=full_seconds / seconds,
        psnr=summaries["psnr"],
        ssim=summaries["ssim"],
        lpips=Summary.of(known["lpips"], worst=max) if known["lpips"] else None,
        flip=Summary.of(known["flip"], worst=max) if known["flip"] else None,
        psnr_fine=summaries["psnr_fine"],
        caption=summaries["caption"],
    )


def _costs_no_more(other: Result, than: Result) -> bool:
    return (
        other.psnr is not None
        and other.share is not None
        and than.share is not None
        and other.share <= than.share + SHARE_TOLERANCE
    )


def _best(others: Iterable[Result]) -> Result | None:
    return max(others, key=_mean_psnr, default=None)


def _mean_psnr(result: Result) -> float:
    assert result.psnr is not None  # others and fitted are chosen by it
    return result.psnr.mean
