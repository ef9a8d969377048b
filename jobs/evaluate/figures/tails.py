"""Every pair's fidelity, a dot each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jobs._shared.drawing import COLOURS, FONT, drawing, key, unit
from jobs.evaluate.figures.families import family


def tails(samples: Mapping[int, Mapping[str, Sequence[float]]]) -> str | None:
    """Every pair's fidelity by budget: the tail is what a mean hides.

    Args:
        samples: budget -> method -> PSNR in dB of each pair.

    Returns:
        None where there is no sample.
    """
    methods = list(dict.fromkeys(name for columns in samples.values() for name in columns))
    if not methods:
        return None
    label = "PSNR of every pair. " + " ".join(
        f"Budget {budget}, {name}: worst {min(values):.1f}, mean {np.mean(values):.1f} dB."
        for budget, columns in sorted(samples.items())
        for name, values in columns.items()
    )
    with drawing("tails", 340, label, right=8) as (axes, done):
        for place, (_, columns) in enumerate(sorted(samples.items())):
            for name, values in columns.items():
                x = place + 0.46 * (methods.index(name) - (len(methods) - 1) / 2)
                colour = COLOURS[family(name)]
                # The golden ratio spreads neighbours apart, and the same way every time.
                jitter = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.26
                ranked = np.sort(np.asarray(values))
                axes.scatter(x + jitter, ranked, s=9, color=colour, alpha=0.5, linewidths=0)
                mean = float(np.mean(ranked))
                axes.plot([x - 0.17, x + 0.17], [mean, mean], color=colour, linewidth=2.5)
                axes.annotate(
                    f"{ranked[0]:.0f}",
                    (x, ranked[0]),
                    (0, -6),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    size=FONT - 2,
                    color=colour,
                )
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.02, y=0.09)
        axes.set_xticks(range(len(samples)), [str(budget) for budget in sorted(samples)])
        axes.set_xlabel("budget, forwards")
        unit(axes, "dB")
        for name in methods:
            axes.plot([], [], color=COLOURS[family(name)], label=name)
        key(axes)
        return done()
