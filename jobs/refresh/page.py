"""A run's page: one self-contained HTML file, nothing fetched from anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from markupsafe import Markup

from cluster.results.registry import Setting
from jobs._shared import pages
from jobs._shared.pages import number, plus_minus
from jobs.refresh.audits import Trend
from jobs.refresh.decision import Decision
from jobs.refresh.drift import Drift
from jobs.refresh.figure import cost_drift
from meancache.calibration import Calibration


def refresh_page(
    date: str,
    setting: Setting,
    graph: Calibration,
    decisions: Sequence[Decision],
    drift: Drift | None,
    trends: Sequence[Trend],
    evaluation: str,
    root: str,
) -> str:
    """The page as HTML text.

    Args:
        date: of the run.
        setting: what the schedules are for.
        graph: what the candidates were made from.
        decisions: one for each budget.
        drift: its costs against those of earlier runs; None where there are too few.
        trends: what audits say; empty where none were read.
        evaluation: where the page of the held-out pairs is, from this one.
        root: of the refresh, for the commands.
    """
    environment = pages.environment("refresh")
    environment.filters.update(plus_minus=plus_minus, number=number)
    return environment.get_template("refresh.html").render(
        date=date,
        setting=setting,
        graph=graph,
        steps=graph.grid.num_inference_steps,
        decisions=decisions,
        promoted=[decision for decision in decisions if decision.promoted],
        drift=drift,
        picture=None if drift is None else Markup(cost_drift(drift)),
        trends=trends,
        evaluation=evaluation,
        root=shlex.quote(root),
    )
