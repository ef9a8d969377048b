"""What the paper and its authors settled for their models, ready to use.

>>> preset = PAPER["QwenImagePipeline"]
>>> paper_schedules(graph, preset.budgets, preset.gamma, preset.execution)

The schedules that the authors published are files under schedules/published; they name steps of a
grid of 50, so they mean the same on the grid of any image size: see `on_grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Preset:
    """A row of the paper's configuration (Table 4) for `methods.paper_schedules`.

    Attributes:
        gamma: peak suppression of eq. 15.
        budgets: forwards of a run that the paper reports.
        num_inference_steps: T.
        prompts: that it calibrated on, with so many `seeds` each.
        execution: the rule of the authors' published scripts.
    """

    gamma: float
    budgets: tuple[int, ...] = tuple(range(10, 16))
    num_inference_steps: int = 50
    prompts: int = 50
    seeds: int = 5
    execution: str = "fine-step"


# By the class name of the diffusers pipeline.
PAPER = {
    "FluxPipeline": Preset(gamma=4.0),
    "QwenImagePipeline": Preset(gamma=4.0),
    "HunyuanVideoPipeline": Preset(gamma=3.0),
}


def on_grid(schedule: Schedule, sigmas: Sequence[float]) -> Schedule:
    """The same edges on other noise levels, for which they were not calibrated.

    Spans are counts of steps, and the paper's rule takes its coefficients from the grid that it
    runs on; weights are numbers for one grid, and stay there.

    Args:
        schedule: of the method `paper`.
        sigmas: T + 1 noise levels, the final 0 included, such as `pipe.scheduler.sigmas.tolist()`
            after a call of the size in question.

    Returns:
        A schedule with the conditions and the predicted cost left open, as neither holds there.

    Raises:
        ScheduleError: the schedule has weights, or the grid has another number of steps.
    """
    if schedule.execution is None:
        raise ScheduleError(
            f"a schedule of the method {schedule.method!r} has weights that hold on its own grid "
            "only; solve one for the other grid"
        )
    try:
        grid = Grid.from_sigmas(sigmas)
    except ValueError as error:
        raise ScheduleError(str(error)) from error
    if grid.num_inference_steps != schedule.num_inference_steps:
        raise ScheduleError(
            f"the schedule is for {schedule.num_inference_steps} steps, but the grid has "
            f"{grid.num_inference_steps}; give one of {schedule.num_inference_steps} steps"
        )
    return replace(schedule, grid=grid, conditions={}, predicted_cost=None)
