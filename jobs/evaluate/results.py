"""Who stands where: the evaluation's rows, summed up to one standing a contender.

Pure functions on one table. Knows nothing of how a row came about, nor of the page it ends on.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meancache.quality import Summary
from meancache.schedule import Schedule

VERSION = "1"
FULL = "full"
OURS = ("fitted", "secant")
PAPER = "paper"
# It begins where `fitted` ends and takes gradients through the model: an upper bound to see what
# better weights would be worth, and named apart, as it is no other way to get there.
REFINED = "refined"
# Shares are ratios of whole FLOPs: two that are meant to be equal differ by rounding alone.
SHARE_TOLERANCE = 1e-6

SCHEMA = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("setting", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("schedule_id", pa.string()),
        pa.field("budget", pa.int32()),
        pa.field("nfe", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("share", pa.float64()),
        pa.field("psnr", pa.float64()),
        pa.field("ssim", pa.float64()),
        pa.field("lpips", pa.float64()),
        pa.field("psnr_fine", pa.float64()),
        pa.field("caption", pa.float64()),
        pa.field("seconds", pa.float64(), nullable=False),
    ],
    metadata={"schema": VERSION},
)
"""A row a (contender, pair). `share`: transformer FLOPs of the run over the full run's; `psnr`,
`ssim`, `lpips`: against the full run, null for itself; `psnr_fine`: dB against a fine solution
of the flow; `caption`: share of the caption's facts shown; `seconds`: of the denoising loop."""


def scoreboard(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The rows as one table, in an order that their content alone decides."""
    ordered = sorted(rows, key=lambda row: (*_contender_key(row), row["prompt_id"], row["seed"]))
    return pa.Table.from_pylist(ordered, SCHEMA)


def to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """Reads what `to_parquet` wrote. Raises ValueError where the bytes are not such a file."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    if not table.schema.equals(SCHEMA, check_metadata=True):
        raise ValueError(f"its columns are not those of an evaluation of schema {VERSION}")
    return table


@dataclass(frozen=True)
class Standing:
    """One contender over all pairs.

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
        psnr_fine: dB against the fine solution; None where none was drawn.
        caption: share of the caption's facts shown; None where no prompt was such a caption.
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
    psnr_fine: Summary | None
    caption: Summary | None

    @property
    def name(self) -> str:
        """In words: 'fitted, B=10', 'taylorseer (cache_interval 4)'."""
        return contender_name(self.method, self.budget, self.setting)


def contender_name(method: str, budget: int | None, setting: str | None) -> str:
    """A contender in words: 'fitted, B=10', 'taylorseer (cache_interval 4)', 'full'."""
    forwards = "" if budget is None or method == FULL else f", B={budget}"
    return f"{method}{forwards}" + ("" if setting is None else f" ({setting})")


def standings(table: pa.Table) -> list[Standing]:
    """One standing a contender: ours first, then the paper's, the peers by name, the full run last.

    A method's own stand by budget, or by compute where their knob is not a budget.

    Args:
        table: of SCHEMA.

    Raises:
        ValueError: the table has no row of the full run.
    """
    contenders: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        contenders.setdefault(_contender_key(row), []).append(row)
    full = [row["seconds"] for rows in contenders.values() for row in rows if _is_full(row)]
    if not full:
        raise ValueError("the evaluation has no row of method 'full'; evaluate the full run too")
    found = [_standing(contenders[key], median(full)) for key in sorted(contenders)]
    return sorted(found, key=lambda one: (*_place(one.method), one.budget or 0, one.share or 0.0))


@dataclass(frozen=True)
class Margin:
    """How far one `fitted` schedule is ahead, in dB of mean PSNR against the full run.

    Attributes:
        fitted: the schedule's standing.
        peer: the best independent peer at equal or less compute; None where there is none.
        paper: the best of the paper's variants at equal or less compute; None likewise.
        refined: the best that gradients made of a fitted schedule, at equal or less compute.
    """

    fitted: Standing
    peer: Standing | None
    paper: Standing | None
    refined: Standing | None

    def over(self, rival: Standing) -> float:
        """dB ahead of `rival`; negative where behind."""
        mine, theirs = _mean_psnr(self.fitted), _mean_psnr(rival)
        return 0.0 if mine == theirs else mine - theirs  # both may be infinite

    def __str__(self) -> str:
        said = [
            self._against("independent peer", self.peer),
            self._against("paper's variant", self.paper),
            self._against("refinement of it by gradients", self.refined),
        ]
        known = "; ".join(sentence for sentence in said if sentence)
        return f"{self.fitted.name}: {known or 'nobody competes at equal or less compute'}"

    def _against(self, kind: str, rival: Standing | None) -> str:
        if rival is None:
            return ""
        gain = self.over(rival)
        place = f"ahead of every {kind}" if gain >= 0 else f"behind the best {kind}"
        return (
            f"{place} at equal or less compute by {abs(gain):.1f} dB "
            f"({rival.name}: {_mean_psnr(rival):.1f} dB)"
        )


def margins(found: Sequence[Standing]) -> list[Margin]:
    """The margin of each `fitted` schedule, in the order of the standings.

    Compute is the share of transformer FLOPs; who was not counted or not measured is no rival.
    """
    kinds: dict[str, list[Standing]] = {"peer": [], "paper": [], "refined": []}
    for one in found:
        if one.method not in (*OURS, FULL):
            kinds[one.method if one.method in (PAPER, REFINED) else "peer"].append(one)
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


def prediction_error(found: Sequence[Standing], schedules: Sequence[Schedule]) -> Summary | None:
    """Measured minus predicted dB, over the schedules whose fidelity was predicted.

    Against the full run, or against the fine solution where a schedule was fitted to one.
    """
    by_id = {one.id: one for one in schedules if one.predicted_psnr is not None}
    errors = []
    for standing in found:
        schedule = by_id.get(standing.schedule_id or "")
        if schedule is not None and schedule.predicted_psnr is not None:
            fine = schedule.reference_steps != schedule.num_inference_steps
            measured = standing.psnr_fine if fine else standing.psnr
            if measured is not None and math.isfinite(measured.mean):
                errors.append(measured.mean - schedule.predicted_psnr)
    return Summary.of(errors) if errors else None


def text_table(found: Sequence[Standing], schedules: Sequence[Schedule]) -> str:
    """The standings as aligned text for a terminal; columns that nobody fills are left out.

    Args:
        found: the standings, a line each.
        schedules: those among them, for the fidelity that each has on its own calibration runs:
            against the full run, or against the fine solution where it was fitted to one.
    """
    predicted: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for schedule in schedules:
        if schedule.predicted_psnr is not None:
            fine = schedule.reference_steps != schedule.num_inference_steps
            predicted[fine][schedule.id] = schedule.predicted_psnr
    columns = {
        "method": [one.method for one in found],
        "setting": [one.setting or "" for one in found],
        "budget": ["" if one.budget is None else str(one.budget) for one in found],
        "NFE": [f"{one.nfe:.3g}" for one in found],
        "share": [_percent(one.share) for one in found],
        "seconds": [f"{one.seconds:.2f}" for one in found],
        "speed-up": [f"{one.speedup:.1f}x" for one in found],
        "PSNR (worst)": [_with_worst(one.psnr) for one in found],
        "predicted": [_decibels(predicted[False].get(one.schedule_id or "")) for one in found],
        "SSIM": ["" if one.ssim is None else f"{one.ssim.mean:.3f}" for one in found],
        "LPIPS": ["" if one.lpips is None else f"{one.lpips.mean:.3f}" for one in found],
        "caption": [_percent(None if one.caption is None else one.caption.mean) for one in found],
        "PSNR to fine": [_with_worst(one.psnr_fine) for one in found],
        "predicted to fine": [
            _decibels(predicted[True].get(one.schedule_id or "")) for one in found
        ],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    widths = {name: max(map(len, (name, *cells))) for name, cells in filled.items()}
    lines = [
        list(filled),
        *([cells[row] for cells in filled.values()] for row in range(len(found))),
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(widths[name]) if name in ("method", "setting") else cell.rjust(widths[name])
            for name, cell in zip(filled, line, strict=True)
        ).rstrip()
        for line in lines
    )


def _contender_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells contenders apart, so that sorting by it groups their rows."""
    return (*_place(row["method"]), row["budget"] or 0, row["setting"] or "")


def _place(method: str) -> tuple[int, str]:
    """Where a method stands among the others."""
    known = (*OURS, PAPER)
    order = known.index(method) if method in known else len(known) + (method == FULL)
    return (order, method)


def _is_full(row: Mapping[str, Any]) -> bool:
    return row["method"] == FULL


def _standing(rows: Sequence[Mapping[str, Any]], full_seconds: float) -> Standing:
    known = {
        name: [row[name] for row in rows if row[name] is not None]
        for name in ("share", "psnr", "ssim", "lpips", "psnr_fine", "caption")
    }
    summaries = {name: Summary.of(known[name]) if known[name] else None for name in known}
    first = rows[0]
    seconds = median(row["seconds"] for row in rows)
    return Standing(
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
        psnr_fine=summaries["psnr_fine"],
        caption=summaries["caption"],
    )


def _costs_no_more(other: Standing, than: Standing) -> bool:
    return (
        other.psnr is not None
        and other.share is not None
        and than.share is not None
        and other.share <= than.share + SHARE_TOLERANCE
    )


def _best(rivals: Iterable[Standing]) -> Standing | None:
    return max(rivals, key=_mean_psnr, default=None)


def _mean_psnr(standing: Standing) -> float:
    assert standing.psnr is not None  # rivals and fitted are chosen by it
    return standing.psnr.mean


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _with_worst(summary: Summary | None) -> str:
    if summary is None:
        return ""
    # One pair, or one without any error, leaves no standard error to speak of.
    mean = f"{summary}" if math.isfinite(summary.standard_error) else f"{summary.mean:.1f}"
    return f"{mean} ({summary.worst:.1f})"
