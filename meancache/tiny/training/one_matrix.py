"""A picture of what a calibration is: one matrix, and schedules for many grids from it.

    python -m meancache.tiny.training.one_matrix --output FILE.png [--calibration FILE]

No model is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from meancache.calibration import Calibration
from meancache.grid import Grid
from meancache.tiny.training.carry import SHIPPED

BUDGET = 10
GRIDS = ((30, 7.0), (30, 5.0), (40, 12.0), (50, 7.0), (50, 3.0), (100, 5.0))
_BLUE, _FAINT = "#2a6fb0", "#d5d8de"


def draw(calibration: Calibration, file: Path) -> None:
    """A PNG: the cosines of the velocities, and the steps that each grid's schedule computes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    gram = np.mean([item.gram for item in calibration.nonempty()], axis=0)
    scale = np.sqrt(np.diag(gram))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), width_ratios=(1, 1.7), layout="constrained"
    )
    image = left.imshow(gram / np.outer(scale, scale), cmap="viridis", vmax=1)
    figure.colorbar(image, ax=left, shrink=0.8)
    levels = calibration.recorded.num_inference_steps
    left.set_title(f"one matrix: cosines of the velocities\nat {levels} noise levels", fontsize=10)
    left.set_xlabel("level, from noise to sample")
    for row, (steps, shift) in enumerate(GRIDS):
        times = np.linspace(1, 0, steps + 1)
        sigmas = shift * times / (1 + (shift - 1) * times)
        schedule = calibration.schedule(Grid.from_sigmas(sigmas.tolist()), BUDGET)
        computed = sigmas[list(schedule.computed_steps)]
        right.plot(sigmas[:-1], np.full(steps, row), "|", color=_FAINT, markersize=14)
        right.plot(computed, np.full(len(computed), row), "o", color=_BLUE, markersize=6)
    right.set_yticks(range(len(GRIDS)), [f"{t} steps, shift {s:g}" for t, s in GRIDS])
    right.set_xlim(1.02, 0)
    right.set_xlabel("noise level; dots are the steps that run the transformer")
    right.set_title(f"many grids: {BUDGET} forwards each, solved in a moment", fontsize=10)
    right.spines[["top", "right", "left"]].set_visible(False)
    right.tick_params(left=False)
    figure.savefig(file, dpi=130)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m meancache.tiny.training.one_matrix",
        description="Draws a calibration and the steps that its schedules compute on many grids.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--calibration", type=Path, default=SHIPPED, metavar="FILE")
    options = parser.parse_args()
    draw(Calibration.load(options.calibration), options.output)


if __name__ == "__main__":
    main()
