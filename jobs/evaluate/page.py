"""The evaluation's page: one self-contained HTML file, nothing fetched from anywhere.

Puts the results, the schedules and the graph into tables and figures; sums nothing up itself
but what compares two methods pair by pair.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from jobs._shared import figures, pages
from jobs.evaluate.results import SHARE_TOLERANCE, Margin, Result, margins, results
from jobs.evaluate.table import FULL, OURS, PAPER
from meancache.calibration import Calibration
from meancache.quality import Summary
from meancache.schedule import Schedule

# Where there is one of this budget, the headline speaks of it: the paper's own is 10.
HEADLINE_BUDGET = 10
# How many of the worst samples are named.
NAMED = 8
_GAMMA = re.compile(r"jump, gamma ([\d.]+)")


@dataclass(frozen=True)
class Comparison:
    """A fitted schedule beside another method on the same pairs.

    Attributes:
        other: what it is compared with.
        gain: dB ahead pair by pair, same prompt and noise; negative where behind.
    """

    other: Result
    gain: Summary


@dataclass(frozen=True)
class Chart:
    """A figure and the sentence under it."""

    title: str
    svg: Markup
    caption: str


def evaluation_page(
    table: pa.Table,
    schedules: Sequence[Schedule],
    graph: Calibration | None,
    unusable: Sequence[tuple[str, str]],
) -> str:
    """The page as HTML text.

    Args:
        table: the evaluation's rows, of `jobs.evaluate.table`.
        schedules: those that were compared; shown, and asked for the fidelity they predicted.
        graph: the statistics they were solved from; None leaves Figure 2 out.
        unusable: (method, reason) of the baselines that could not run.

    Raises:
        ValueError: the table has no row of the full run.
    """
    found = results(table)
    scores = _scores(table, "psnr")
    ahead = margins(found)
    compared = [
        {
            "fitted": margin.fitted,
            "paper": _comparison(scores, margin.fitted, margin.paper),
            "baseline": _comparison(scores, margin.fitted, margin.baseline),
            "refined": _comparison(scores, margin.fitted, margin.refined),
        }
        for margin in ahead
    ]
    chosen = _headline(ahead)
    by_id = {one.id: one for one in schedules}
    predicted = {
        one.id: one.predicted_psnr
        for one in schedules
        if one.predicted_psnr is not None and one.reference_steps == one.num_inference_steps
    }
    environment = pages.environment("evaluate")
    environment.filters.update(plus_minus=plus_minus, number=number, percent=percent)
    return environment.get_template("evaluation.html").render(
        full=next(one for one in found if one.method == FULL),
        chosen=None if chosen is None else compared[ahead.index(chosen)],
        compared=compared,
        exact=_closer_than_the_full_run(found, _scores(table, "psnr_fine")),
        cost_charts=_cost_charts(found),
        families={figures.family(one.method) for one in found if one.method != FULL},
        closer_charts=_closer_charts(found, scores, by_id, graph),
        worst=[] if chosen is None else _worst(table, scores, chosen),
        gamma=_gamma_table(found),
        groups=_groups(found, predicted),
        measured={
            name: any(getattr(one, name) is not None for one in found)
            for name in ("lpips", "caption", "psnr_fine")
        },
        predicted=predicted,
        unusable=unusable,
        held_out=graph is not None,
    )


def plus_minus(summary: Summary | None, digits: int = 1, scale: float = 1.0) -> str:
    """'38.7 ± 0.6': the mean and its standard error; the mean alone where the error is unknown."""
    if summary is None:
        return "–"
    error = summary.standard_error * scale
    mean = number(summary.mean * scale, digits)
    return f"{mean} ± {error:.{digits}f}" if math.isfinite(error) else mean


def number(value: float | None, digits: int = 1) -> str:
    """A number for a cell; infinite where two videos are identical."""
    if value is None or math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and text.strip("0.") else text


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{number(100 * share, digits)}%"


_Key = tuple[str, str | None, int | None]
_Pair = tuple[str, int]


def _key(one: Result) -> _Key:
    return (one.method, one.setting, one.budget)


def _scores(table: pa.Table, measure: str) -> dict[_Key, dict[_Pair, float]]:
    """Method -> (prompt_id, seed) -> `measure`, in dB, where it was taken."""
    scores: dict[_Key, dict[_Pair, float]] = {}
    columns = ("method", "setting", "budget", "prompt_id", "seed", measure)
    for row in table.select(columns).to_pylist():
        if row[measure] is not None:
            key = (row["method"], row["setting"], row["budget"])
            scores.setdefault(key, {})[row["prompt_id"], row["seed"]] = row[measure]
    return scores


def _comparison(
    scores: Mapping[_Key, Mapping[_Pair, float]], mine: Result, other: Result | None
) -> Comparison | None:
    """Paired by prompt and noise, which shrinks the error to that of the difference."""
    if other is None:
        return None
    ours, theirs = scores.get(_key(mine), {}), scores.get(_key(other), {})
    # Where both equal the full run, neither is ahead: inf - inf would say NaN.
    gains = [
        0.0 if ours[pair] == theirs[pair] else ours[pair] - theirs[pair]
        for pair in ours
        if pair in theirs
    ]
    return Comparison(other, Summary.of(gains)) if gains else None


def _headline(ahead: Sequence[Margin]) -> Margin | None:
    """The margin of the budget that the page speaks of first: 10, or the nearest to it."""
    return min(
        ahead,
        key=lambda margin: abs((margin.fitted.budget or margin.fitted.nfe) - HEADLINE_BUDGET),
        default=None,
    )


def _closer_than_the_full_run(
    found: Sequence[Result], scores: Mapping[_Key, Mapping[_Pair, float]]
) -> tuple[Result, Comparison] | None:
    """The cheapest fitted schedule that is closer to the exact flow than all the steps are.

    Closer by more than the standard error of the difference, pair by pair: what follows the full
    run to the last decibel is ahead of it half the time.

    Args:
        found: the results.
        scores: method -> pair -> PSNR in dB against the fine solution.
    """
    full = next(one for one in found if one.method == FULL)
    fitted = (one for one in found if one.method == "fitted")
    for mine in sorted(fitted, key=lambda one: one.nfe):
        lead = _comparison(scores, mine, full)
        if lead is not None and lead.gain.mean > lead.gain.standard_error:
            return mine, lead
    return None


def _chart(title: str, svg: str | None, caption: str) -> list[Chart]:
    """One chart, or none where there was nothing to draw. What `figures` drew is escaped."""
    return [] if svg is None else [Chart(title, Markup(svg), caption)]


def _cost_charts(found: Sequence[Result]) -> list[Chart]:
    return [
        *_chart(
            "Fidelity against time",
            figures.fidelity(found, "seconds"),
            "Median seconds of the denoising loop, measured, logarithmic. Up and to the left is "
            "better.",
        ),
        *_chart(
            "Fidelity against compute",
            figures.fidelity(found, "share"),
            "Transformer FLOPs run, as a share of the full run's, logarithmic. Each method shows "
            "those of its settings that none of its cheaper ones beats.",
        ),
    ]


def _closer_charts(
    found: Sequence[Result],
    scores: Mapping[_Key, Mapping[_Pair, float]],
    schedules: Mapping[str, Schedule],
    graph: Calibration | None,
) -> list[Chart]:
    wide = graph is not None and graph.grid.num_inference_steps > figures.WINDOW + 1
    known = graph if wide and graph is not None and graph.trajectories else None
    return [
        *_chart(
            "Every pair, not only the mean",
            figures.tails(_samples(found, scores)),
            "A dot a pair, a bar their mean, the number the worst of them. The paper is "
            "shown by the best of its variants at each budget.",
        ),
        *_chart(
            "Predicted against measured",
            figures.predictions(_promises(found, schedules)),
            "On the dashed line a schedule does on these pairs what its calibration promised, "
            "each against the reference that it was fitted to.",
        ),
        *_chart(
            "Instantaneous against average velocity",
            None if known is None else figures.velocity_change(known),
            "How much each changes from one step to the next on the calibration trajectories, "
            "logarithmic: the lower line is the steadier, so the safer to foretell over a jump.",
        ),
        *_chart(
            "Which steps compute",
            figures.computed_steps(_drawn(found, schedules)),
            "A row a schedule, its budget on the left: coloured steps run the transformer, the "
            "others take a velocity estimated from those before. Of several the best is shown.",
        ),
        *_chart(
            "Closeness to the exact flow",
            figures.fidelity(found, "share", "psnr_fine"),
            "PSNR against a fine solution of the flow. What lies above the dashed line is closer "
            "to the exact flow than the full run itself.",
        ),
    ]


def _drawn(found: Sequence[Result], schedules: Mapping[str, Schedule]) -> list[Schedule]:
    """Of each method and budget the schedule that was measured best.

    `refined` keeps the steps of the fitted schedule that it starts from, and says nothing new.
    """
    best: dict[tuple[str, int], Result] = {}
    for one in found:
        if one.schedule_id in schedules and one.psnr and one.budget and one.method != "refined":
            place = (one.method, one.budget)
            best[place] = max(best.get(place, one), one, key=_mean)
    return [schedules[one.schedule_id] for one in best.values() if one.schedule_id]


def _promises(found: Sequence[Result], schedules: Mapping[str, Schedule]) -> list[figures.Promise]:
    promises = []
    for one in found:
        schedule = schedules.get(one.schedule_id or "")
        if schedule is None or schedule.predicted_psnr is None:
            continue
        # Fitted to a finer solution, it predicts how close it comes to that.
        beyond = schedule.reference_steps != schedule.num_inference_steps
        measured = one.psnr_fine if beyond else one.psnr
        if measured is not None and math.isfinite(measured.mean):
            name = f"B = {schedule.budget}" + (", to fine" if beyond else "")
            promises.append(figures.Promise(name, one.method, schedule.predicted_psnr, measured))
    return promises


def _samples(
    found: Sequence[Result], scores: Mapping[_Key, Mapping[_Pair, float]]
) -> dict[int, dict[str, list[float]]]:
    """Budget -> method -> the pairs' PSNR, of the best fitted and paper method there."""
    samples: dict[int, dict[str, list[float]]] = {}
    for method in ("fitted", PAPER):
        rows = [one for one in found if one.method == method and one.budget and _finite(one.psnr)]
        for budget in sorted({one.budget for one in rows if one.budget}):
            best = max((one for one in rows if one.budget == budget), key=_mean)
            samples.setdefault(budget, {})[method] = list(scores[_key(best)].values())
    return samples


def _mean(one: Result) -> float:
    return -math.inf if one.psnr is None else one.psnr.mean


def _finite(summary: Summary | None) -> bool:
    return summary is not None and math.isfinite(summary.mean)


def _worst(
    table: pa.Table, scores: Mapping[_Key, Mapping[_Pair, float]], chosen: Margin
) -> list[dict[str, Any]]:
    """The pairs that the headline's schedule serves worst, and how the paper fares on them."""
    prompts = {
        (row["prompt_id"], row["seed"]): row["prompt"]
        for row in table.select(["prompt_id", "seed", "prompt"]).to_pylist()
    }
    ours = scores[_key(chosen.fitted)]
    paper = {} if chosen.paper is None else scores[_key(chosen.paper)]
    return [
        {"prompt": prompts[pair], "seed": pair[1], "fitted": ours[pair], "paper": paper.get(pair)}
        for pair in sorted(ours, key=lambda pair: (ours[pair], pair))[:NAMED]
    ]


def _gamma_table(found: Sequence[Result]) -> dict[str, Any] | None:
    """The paper's Table 3: its jump rule by gamma and budget; None where gamma was not varied."""
    cells: dict[tuple[float, int], Summary] = {}
    for one in found:
        match = _GAMMA.fullmatch(one.setting or "")
        if one.method == PAPER and match and one.budget is not None and one.psnr is not None:
            cells[float(match[1]), one.budget] = one.psnr
    gammas = sorted({gamma for gamma, _ in cells})
    budgets = sorted({budget for _, budget in cells})
    if len(gammas) < 2:
        return None
    best = {
        budget: max(cells[gamma, budget].mean for gamma in gammas if (gamma, budget) in cells)
        for budget in budgets
    }
    return {"gammas": gammas, "budgets": budgets, "cells": cells, "best": best}


def _groups(found: Sequence[Result], predicted: Mapping[str, float]) -> list[dict[str, Any]]:
    """The main table: a group a method, its rows by rising compute."""
    kinds = {**dict.fromkeys(OURS, "ours"), PAPER: "the paper", FULL: "reference"}
    fitted = [one for one in found if one.method == "fitted"]
    steps = next(one for one in found if one.method == FULL).nfe
    groups = []
    for (method, source), rows in itertools.groupby(found, lambda one: (one.method, one.source)):
        ordered = sorted(rows, key=lambda one: one.nfe / steps if one.share is None else one.share)
        groups.append(
            {
                "method": method,
                "source": source,
                "kind": kinds.get(method, "baseline"),
                "rows": [(one, _row_name(one), _beaten(one, fitted)) for one in ordered],
            }
        )
    return groups


def _row_name(one: Result) -> str:
    budget = "" if one.budget is None or one.method == FULL else f"B = {one.budget}"
    return ", ".join(filter(None, [budget, one.setting])) or f"{one.nfe:.0f} steps"


def _beaten(other: Result, fitted: Sequence[Result]) -> list[int]:
    """The budgets at which `other` is closer to the full run than fitted, for no more compute."""
    if other.method in ("fitted", FULL) or other.psnr is None or other.share is None:
        return []
    budgets = {one.budget for one in fitted if one.budget is not None}
    best = [
        max((one for one in fitted if one.budget == budget), key=_mean)
        for budget in sorted(budgets)
    ]
    return [
        mine.budget
        for mine in best
        if mine.budget is not None
        and mine.share is not None
        and other.share <= mine.share + SHARE_TOLERANCE
        and _mean(other) > _mean(mine)
    ]
