"""Figure 2: how much velocities change from step to step."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jobs._shared.drawing import COLOURS, drawing, key, unit
from meancache.calibration import Calibration
from meancache.velocity import average_velocity

# Steps that the average velocity of Figure 2 looks ahead: the paper's longest span.
WINDOW = 5


def velocity_change(graph: Calibration) -> str:
    """Figure 2: how much the velocity, and the average velocity, change from step to step.

    From the mean Gram matrix G of the trajectories: for rows a, b over the steps, the relative
    change is sqrt((b - a) G (b - a)^T / a G a^T). Shown along sigma, noise on the left: v_k at
    sigma_k, an average in the middle of what it averages, a change between its two ends.

    Raises:
        ValueError: the graph has no trajectory, or no more steps than the window.
    """
    steps = graph.grid.num_inference_steps
    if not graph.trajectories or steps <= WINDOW + 1:
        raise ValueError(
            f"a graph of {len(graph.trajectories)} trajectories of {steps} steps has no velocity "
            f"change to show; it takes at least one of more than {WINDOW + 1} steps"
        )
    sigmas = graph.grid.array()
    gram = graph.gram()
    instant = relative_change(np.eye(steps), gram)
    ahead = [average_velocity(sigmas, k, k + WINDOW) for k in range(steps - WINDOW + 1)]
    average = relative_change(np.stack(ahead), gram)
    label = (
        f"Relative change from one step to the next: of the instantaneous velocity, "
        f"{100 * np.median(instant):.1f}% in the median and {100 * instant.max():.0f}% at most; of "
        f"the average velocity over {WINDOW} steps, {100 * np.median(average):.1f}% and "
        f"{100 * average.max():.0f}%."
    )
    with drawing("velocity-change", 270, label, right=16) as (axes, done):
        middles = (sigmas[:-WINDOW] + sigmas[WINDOW:]) / 2
        for values, places, colour, name, width in (
            (instant, sigmas[:-1], COLOURS["paper"], "instantaneous v", 1.6),
            (average, middles, COLOURS["fitted"], f"average u over {WINDOW} steps", 2.6),
        ):
            between = (places[:-1] + places[1:]) / 2
            axes.plot(between, 100 * values, color=colour, linewidth=width, label=name)
        key(axes)
        axes.set_xlim(1.02, -0.02)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}%"))
        axes.set_xlabel("sigma: from noise to video")
        unit(axes, "change a step")
        return done()


def relative_change(rows: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The change from each row's velocity to the next one's: (n, T), (T, T) -> (n - 1,)."""
    difference = np.diff(rows, axis=0)
    # Rounding may leave a hair below zero where nothing changes.
    changed = np.einsum("ni,ij,nj->n", difference, gram, difference).clip(min=0.0)
    size = np.einsum("ni,ij,nj->n", rows[:-1], gram, rows[:-1])
    return np.sqrt(changed / size)
