"""Calibrations of the embedded model on real trajectories, without a gang."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.models.model import Model
from cluster.ranks.renderer import Renderer
from meancache.calibration import Calibration
from meancache.statistics import trajectory_statistics
from meancache.trajectory import record_trajectory


def recorded(model: Model, steps: int, prompts: Sequence[str], seed: int = 5) -> Calibration:
    """One trajectory of so many steps of each prompt, all from the same seed."""
    renderer = Renderer(model, 0, 1, "")
    grid, arguments = model.grid(steps), {**model.defaults, "num_inference_steps": steps}
    statistics = []
    for number, prompt in enumerate(prompts):
        with record_trajectory(renderer.pipeline.transformer) as trajectory:
            renderer.latents(prompt, seed, arguments)
        velocities = trajectory.velocities(steps)
        statistics.append(trajectory_statistics(velocities, grid, f"p{number}", seed, prompt))
    return Calibration(grid, model.key, model.conditions(arguments)).add(statistics)
