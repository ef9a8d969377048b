"""The charts of an evaluation's page, with their captions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs.evaluate import figures
from jobs.evaluate.leads import Scores, is_finite, key_of, mean_psnr
from jobs.evaluate.results import Result
from jobs.evaluate.table import PAPER
from meancache.calibration import Calibration
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Chart:
    """A figure and the sentence under it."""

    title: str
    svg: Markup
    caption: str


def _chart(title: str, svg: str | None, caption: str) -> list[Chart]:
    """One chart, or none where there was nothing to show. What `figures` makes is escaped."""
    return [] if svg is None else [Chart(title, Markup(svg), caption)]


def cost_charts(found: Sequence[Result]) -> list[Chart]:
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


def closer_charts(
    found: Sequence[Result],
    scores: Scores,
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
            figures.computed_steps(_best_schedules(found, schedules)),
            "One row per schedule, its budget on the left: coloured steps run the transformer, the "
            "others take a velocity estimated from those before. The best schedule of each method "
            "and budget is shown.",
        ),
        *_chart(
            "Closeness to the exact flow",
            figures.fidelity(found, "share", "psnr_fine"),
            "PSNR against a fine solution of the flow. What lies above the dashed line is closer "
            "to the exact flow than the full run itself.",
        ),
    ]


def _best_schedules(found: Sequence[Result], schedules: Mapping[str, Schedule]) -> list[Schedule]:
    """The schedule that was measured best, for each method and budget.

    `refined` keeps the steps of the fitted schedule that it starts from, and says nothing new.
    """
    best: dict[tuple[str, int], Result] = {}
    for one in found:
        if one.schedule_id in schedules and one.psnr and one.budget and one.method != "refined":
            place = (one.method, one.budget)
            best[place] = max(best.get(place, one), one, key=mean_psnr)
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


def _samples(found: Sequence[Result], scores: Scores) -> dict[int, dict[str, list[float]]]:
    """Budget -> method -> the pairs' PSNR, of the best fitted and paper method there."""
    samples: dict[int, dict[str, list[float]]] = {}
    for method in ("fitted", PAPER):
        rows = [one for one in found if one.method == method and one.budget and is_finite(one.psnr)]
        for budget in sorted({one.budget for one in rows if one.budget}):
            best = max((one for one in rows if one.budget == budget), key=mean_psnr)
            samples.setdefault(budget, {})[method] = list(scores[key_of(best)].values())
    return samples
