"""The evaluation's page: one self-contained HTML file, nothing fetched from anywhere.

Puts the results, the schedules and the graph into tables and figures; sums nothing up itself
but what compares two methods pair by pair.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs._shared import pages
from jobs._shared.pages import number, percent, plus_minus
from jobs.evaluate import figures
from jobs.evaluate.charts import closer_charts, cost_charts
from jobs.evaluate.leads import Lead, Scores, key_of, lead_of, mean_psnr, scores_of
from jobs.evaluate.results import SHARE_TOLERANCE, Margin, Result, margins, results
from jobs.evaluate.table import FULL, OURS, PAPER
from meancache.calibration import Calibration
from meancache.quality import Summary
from meancache.schedule import Schedule

# Where there is one of this budget, the headline speaks of it: the paper's own is 10.
HEADLINE_BUDGET = 10
# How many of the worst samples are named.
NAMED = 8
# A median of fewer runs is marked.
FEW = 5
_GAMMA = re.compile(r"jump, gamma ([\d.]+)")


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
    full = next(one for one in found if one.method == FULL)
    scores = scores_of(table, "psnr")
    ahead = margins(found)
    compared = [
        {
            "fitted": margin.fitted,
            "paper": lead_of(scores, margin.fitted, margin.paper),
            "baseline": lead_of(scores, margin.fitted, margin.baseline),
            "refined": lead_of(scores, margin.fitted, margin.refined),
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
    groups = _groups(found, predicted)
    environment = pages.environment("evaluate")
    environment.filters.update(plus_minus=plus_minus, number=number, percent=percent)
    return environment.get_template("evaluation.html").render(
        full=full,
        chosen=None if chosen is None else compared[ahead.index(chosen)],
        compared=compared,
        exact=_closer_than_the_full_run(found, scores_of(table, "psnr_fine")),
        cost_charts=cost_charts(found),
        families={figures.family(one.method) for one in found if one.method != FULL},
        closer_charts=closer_charts(found, scores, by_id, graph),
        worst=[] if chosen is None else _worst(table, scores, chosen),
        gamma=_gamma_table(found),
        groups=groups,
        measured=_measured(found, groups),
        predicted=predicted,
        unusable=unusable,
        held_out=graph is not None,
        few=full.pairs < FEW,
        model=next((one.model["id"] for one in schedules if "id" in one.model), "MODEL"),
    )


def _measured(found: Sequence[Result], groups: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Which columns of the main table hold anything."""
    columns = {
        name: any(getattr(one, name) is not None for one in found)
        for name in ("lpips", "flip", "caption", "psnr_fine")
    }
    return columns | {"beaten": any(beaten for one in groups for _, _, beaten in one["rows"])}


def _headline(ahead: Sequence[Margin]) -> Margin | None:
    """The margin of the budget that the page speaks of first: 10, or the nearest to it."""
    return min(
        ahead,
        key=lambda margin: abs((margin.fitted.budget or margin.fitted.nfe) - HEADLINE_BUDGET),
        default=None,
    )


def _closer_than_the_full_run(
    found: Sequence[Result], scores: Scores
) -> tuple[Result, Lead] | None:
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
        lead = lead_of(scores, mine, full)
        if lead is not None and lead.gain.mean > lead.gain.standard_error:
            return mine, lead
    return None


def _worst(table: pa.Table, scores: Scores, chosen: Margin) -> list[dict[str, Any]]:
    """The pairs that the headline's schedule serves worst, and how the paper fares on them."""
    prompts = {
        (row["prompt_id"], row["seed"]): row["prompt"]
        for row in table.select(["prompt_id", "seed", "prompt"]).to_pylist()
    }
    ours = scores[key_of(chosen.fitted)]
    paper = {} if chosen.paper is None else scores[key_of(chosen.paper)]
    return [
        {
            "id": pair[0],
            "prompt": prompts[pair],
            "seed": pair[1],
            "fitted": ours[pair],
            "paper": paper.get(pair),
        }
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
        max((one for one in fitted if one.budget == budget), key=mean_psnr)
        for budget in sorted(budgets)
    ]
    return [
        mine.budget
        for mine in best
        if mine.budget is not None
        and mine.share is not None
        and other.share <= mine.share + SHARE_TOLERANCE
        and mean_psnr(other) > mean_psnr(mine)
    ]
