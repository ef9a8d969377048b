"""What a baseline may calibrate on: a few full runs of the very pipeline, at their noise levels.

Every baseline that calibrates is a function from this to what is compared. A baseline whose
estimates are linear in computed velocities, on steps that are fixed beforehand, is a `Schedule`:
it runs by this project's hook, exactly, and its forwards are counted. All others are a `Baseline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from meancache.baselines.baseline import BaselineError
from meancache.baselines.field import Field
from meancache.calibration import Calibration
from meancache.grid import Grid
from meancache.schedule import Edge, Schedule
from meancache.statistics import trajectory_statistics
from meancache.velocity import velocities_in_use

Velocity = Callable[[torch.Tensor, float], torch.Tensor]


class CalibrationData:
    """Calibration runs of one pipeline, and what follows from them.

    Attributes:
        pipeline: a diffusers flow-matching pipeline, without any cache or schedule on it.
        runs: run(**overrides) renders one calibration trajectory through `pipeline` from its own
            fixed noise, with output_type='latent'; one forward a step.
        schedules: {budget: a `fitted` schedule}; baselines are asked for these budgets.
        field: the velocity v(latents, sigma) of all runs at once.
    """

    def __init__(
        self,
        pipeline: Any,
        runs: Sequence[Callable[..., Any]],
        schedules: Mapping[int, Schedule],
    ) -> None:
        """Looks at the first call of every run; computes nothing yet.

        Raises:
            BaselineError: the runs are none, or unlike each other, or not on the schedules' grid;
                or a schedule has spans instead of weights.
        """
        self.pipeline = pipeline
        self.runs = list(runs)
        self.schedules = dict(schedules)
        self.field = Field(pipeline, runs)
        for budget, schedule in schedules.items():
            if not schedule.grid.matches(self.grid.sigmas):
                raise BaselineError(
                    f"the schedule of budget {budget} is for {schedule.grid}, but the calibration "
                    f"runs are on {self.grid}: give runs and schedules of one grid"
                )
            if schedule.edges[0].weights is None:
                raise BaselineError(
                    f"the schedule of budget {budget} has spans, not weights: give a `fitted` one"
                )

    @property
    def grid(self) -> Grid:
        """The noise levels of the runs."""
        return self.field.grid

    @property
    def budgets(self) -> list[int]:
        """The forwards that baselines are asked for, ascending."""
        return sorted(self.schedules)

    @cached_property
    def reference(self) -> torch.Tensor:
        """The full runs: (T + 1, N, ...) float32 latents at every noise level."""
        return self.field.reference()

    @cached_property
    def statistics(self) -> Calibration:
        """The statistics of the runs, as `jobs.calibrate` makes them of any pipeline."""
        steps = np.diff(self.grid.array())
        h = torch.tensor(steps, dtype=torch.float32, device=self.reference.device)
        velocities = self.reference.flatten(2).diff(dim=0) / h.view(-1, 1, 1)
        return Calibration(self.grid).add(
            trajectory_statistics(velocities[:, run], self.grid, f"run-{run:04}", 0)
            for run in range(velocities.shape[1])
        )

    def schedule(
        self,
        method: str,
        budget: int,
        edges: Iterable[Edge],
        source: str,
        setting: str,
        execution: str | None = None,
    ) -> Schedule:
        """A schedule for these runs' model and grid.

        Args:
            method: the baseline's name.
            budget: forwards that it may take.
            edges: with weights, or with spans and an `execution`.
            source: where the method is from.
            setting: what was chosen for it on the calibration runs, in words.
            execution: the paper's rule, where edges have spans.
        """
        like = self.schedules[budget]
        return Schedule(
            grid=self.grid,
            edges=tuple(edges),
            method=method,
            budget=budget,
            execution=execution,
            model=like.model,
            conditions=like.conditions,
            calibration={
                "source": source,
                "setting": setting,
                "trajectories": len(self.field.noise),
            },
        )

    def best(self, candidates: Iterable[Schedule]) -> Schedule:
        """The candidate that ends nearest to the full runs, by its mean PSNR over them.

        This is how each baseline is tuned in its own favour. Costs every candidate's forwards.
        """
        found = list(candidates)
        errors = [self.log_error(each) for each in found]
        return found[int(np.argmin(errors))]

    def log_error(self, schedule: Schedule) -> float:
        """The mean over runs of the log of the mean squared error of the final latents."""
        with torch.no_grad():
            ends = roll_out(self.field, self.reference[0], schedule)
        missed = (ends - self.reference[-1]).square().flatten(1).mean(dim=1)
        return float(missed.clamp(min=1e-30).log().mean())


def roll_out(field: Velocity, noise: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """The final latents of runs that follow `schedule`, as this project's hook runs it.

    The model is called at computed steps alone, so a jump is taken whole: its fine steps add up
    to it.

    Args:
        field: v(latents, sigma) of N runs at once.
        noise: (N, ...) where they start.
        schedule: of any kind.

    Returns:
        (N, ...) latents.
    """
    sigmas, rows = schedule.grid.array(), velocities_in_use(schedule)
    latents, computed = noise, {}
    for edge in schedule.edges:
        computed[edge.start] = field(latents, schedule.grid.sigmas[edge.start])
        lengths = np.diff(sigmas[edge.start : edge.stop + 1])
        moved = lengths @ rows[edge.start : edge.stop]
        for step, velocity in computed.items():
            if moved[step]:
                latents = latents + float(moved[step]) * velocity
    return latents
