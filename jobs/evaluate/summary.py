"""The results of an evaluation as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from jobs.evaluate.results import Result
from meancache.quality import Summary
from meancache.schedule import Schedule


def text_table(found: Sequence[Result], schedules: Sequence[Schedule]) -> str:
    """The results as aligned text for a terminal; columns that nobody fills are left out.

    Args:
        found: the results, a line each.
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
        "tenth": [_decibels(None if one.psnr is None else one.psnr.tail) for one in found],
        "predicted": [_decibels(predicted[False].get(one.schedule_id or "")) for one in found],
        "SSIM": ["" if one.ssim is None else f"{one.ssim.mean:.3f}" for one in found],
        "LPIPS": ["" if one.lpips is None else f"{one.lpips.mean:.3f}" for one in found],
        "FLIP": ["" if one.flip is None else f"{one.flip.mean:.3f}" for one in found],
        "caption": [_percent(None if one.caption is None else one.caption.mean) for one in found],
        "PSNR to fine": [_with_worst(one.psnr_fine) for one in found],
        "predicted to fine": [
            _decibels(predicted[True].get(one.schedule_id or "")) for one in found
        ],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    rows = ([cells[row] for cells in filled.values()] for row in range(len(found)))
    left = {place for place, name in enumerate(filled) if name in ("method", "setting")}
    return aligned([list(filled), *rows], left)


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> str:
    """Rows of as many cells each as text, in columns: those at the places `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


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
