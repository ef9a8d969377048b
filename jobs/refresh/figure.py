"""What skipping a step costs now, against what it cost in earlier runs."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jobs._shared.drawing import COLOURS, drawing, key, unit
from jobs.refresh.drift import Drift


def cost_drift(found: Drift) -> str:
    """What skipping the step after each step costs now, on the spread of earlier runs."""
    steps = np.arange(len(found.latest))
    lines = np.concatenate([found.latest, found.usual])
    # A spread that few trajectories tell of reaches far beyond the picture.
    low, high = lines.min() / 2, lines.max() * 2
    label = f"Cost of skipping a step. {found}"
    with drawing("cost-drift", 300, label, right=16) as (axes, done):
        band = np.clip([found.low, found.high], low, high)
        axes.fill_between(steps, *band, facecolor=COLOURS["off"], linewidth=0)
        axes.plot(steps, found.usual, color=COLOURS["soft"], linewidth=1.4, label="earlier runs")
        axes.plot(steps, found.latest, color=COLOURS["fitted"], linewidth=2.4, label="this run")
        moved = found.moved
        axes.scatter(moved, found.latest[moved], s=26, color=COLOURS["paper"], zorder=3)
        key(axes)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:.1g}"))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("denoising step")
        unit(axes, "cost")
        return done()
