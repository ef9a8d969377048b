"""Figure 6: which steps run the transformer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jobs._shared.drawing import BOTTOM, COLOURS, FONT, drawing
from jobs.evaluate.figures.families import family
from meancache.schedule import Schedule


def computed_steps(schedules: Sequence[Schedule]) -> str | None:
    """Figure 6: which steps run the transformer, a row a schedule, noise on the left.

    Returns:
        None where there is no schedule.
    """
    if not schedules:
        return None
    row_height = 17
    ordered = sorted(schedules, key=lambda one: (one.method, one.budget))
    groups = [
        (method, list(rows)) for method, rows in itertools.groupby(ordered, lambda one: one.method)
    ]
    steps = max(one.num_inference_steps for one in schedules)
    height = BOTTOM + row_height * (len(ordered) + 1.5 * len(groups))
    label = "Computed steps. " + " ".join(
        f"{one.method}, budget {one.budget}: {', '.join(map(str, one.computed_steps))}."
        for one in ordered
    )
    with drawing("computed-steps", height, label, right=8, top=0) as (axes, done):
        axes.grid(visible=False)
        y = 0.0
        for method, rows in groups:
            y += 1.5
            colour = COLOURS[family(method)]
            axes.text(-0.5, y - 0.35, method, color=colour, weight="bold")
            for one in rows:
                cells = [(step - 0.5, 0.82) for step in range(one.num_inference_steps)]
                skipped = [cells[k] for k in range(len(cells)) if k not in one.computed_steps]
                axes.broken_barh(skipped, (y + 0.1, 0.8), facecolor=COLOURS["off"], linewidth=0)
                chosen = [cells[k] for k in one.computed_steps]
                axes.broken_barh(chosen, (y + 0.1, 0.8), facecolor=colour, linewidth=0)
                axes.text(-1.2, y + 0.5, str(one.budget), ha="right", va="center", size=FONT - 1)
                y += 1.0
        axes.set_xlim(-0.5, steps - 0.5)
        axes.set_ylim(y, 0.0)
        axes.set_yticks([])
        axes.set_xlabel("denoising step")
        return done()
