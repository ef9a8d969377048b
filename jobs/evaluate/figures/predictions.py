"""Predicted against measured fidelity, a point a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from jobs._shared.drawing import COLOURS, FONT, drawing, error_of, unit
from jobs.evaluate.figures.families import family
from meancache.quality import Summary


@dataclass(frozen=True)
class Promise:
    """What a schedule was expected to reach, and what it did, in dB."""

    name: str
    method: str
    predicted: float
    measured: Summary


def predictions(promises: Sequence[Promise]) -> str | None:
    """Predicted against measured fidelity, a point a schedule; on the diagonal they are equal.

    Returns:
        None where there is no promise.
    """
    if not promises:
        return None
    label = "Predicted and measured PSNR. " + " ".join(
        f"{one.name}: {one.predicted:.1f} dB predicted, {one.measured.mean:.1f} measured."
        for one in promises
    )
    with drawing("predictions", 280, label, right=56) as (axes, done):
        ends = [value for one in promises for value in (one.predicted, one.measured.mean)]
        room = 0.18 * (max(ends) - min(ends)) + 3  # for the names
        span = (min(ends) - room, max(ends) + room / 2)
        axes.plot(span, span, color=COLOURS["soft"], linewidth=1, dashes=(3, 3))
        for one in promises:
            at = (one.predicted, one.measured.mean)
            colour = COLOURS[family(one.method)]
            axes.errorbar(*at, error_of(one.measured), color=colour, marker="o", markersize=6)
            # Away from the diagonal.
            below = one.measured.mean < one.predicted
            axes.annotate(
                one.name,
                at,
                (8, -3) if below else (-8, 3),
                textcoords="offset points",
                ha="left" if below else "right",
                va="top" if below else "bottom",
                size=FONT - 1,
            )
        axes.set_xlim(span)
        axes.set_ylim(span)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, prune="lower"))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, prune="lower"))
        axes.set_xlabel("predicted on the calibration trajectories, dB")
        unit(axes, "measured on these pairs, dB")
        return done()
