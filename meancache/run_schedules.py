"""Schedules for runs as they come: solved from a calibration before a run's first forward.

`apply_mean_cache(pipe, calibration, budget=B)` follows it, as a `hooks.source.ScheduleSource`. A
run may have other steps, another shift or size than the last, or begin in the middle of its grid;
what was solved for one is kept for the next like it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.json_values import is_whole_number, shown
from meancache.schedule import Schedule

if TYPE_CHECKING:
    from meancache.calibration import Calibration

# Schedules that are kept; a pipeline whose grid changes with the size has one for each size.
KEPT = 64

logger = logging.getLogger(__name__)


class Run(Protocol):
    """What is known of a run before its first forward (`hooks.conditions.RunConditions`)."""

    def differences(self, wanted: Mapping[str, Any]) -> Sequence[Any]:
        """The conditions that the run does not meet: objects with a `name`, and what is `found`."""


class RunSchedules:
    """A schedule of B forwards for every run, of one calibration.

    Args:
        calibration: what the schedules are solved from.
        budget: B, the forwards of a whole run; a run that begins in the middle takes its share.
        strict: refuse runs that differ from the calibration in more than the grid.

    Raises:
        ScheduleError: the budget is no whole number from 1.
        CalibrationError: the calibration has no trajectory.
    """

    def __init__(self, calibration: Calibration, budget: int | None, strict: bool) -> None:
        if not is_whole_number(budget) or budget < 1:  # type: ignore[operator]
            raise ScheduleError(
                f"budget {shown(budget)} must be the forwards of a run, a whole number from 1, "
                "such as budget=10"
            )
        calibration.nonempty()
        self.calibration = calibration
        self.budget: int = budget  # type: ignore[assignment]
        self.strict = strict
        self._solved: dict[Any, Schedule] = {}
        self._lock = threading.Lock()

    def schedule_for(self, grid: Grid, run: Run, begin: int) -> Schedule:
        """The schedule of a run on `grid` from step `begin` on.

        A run of fewer steps than its budget computes all of them.

        Raises:
            ScheduleError: the run is of another class of pipelines.
            CalibrationError: the calibration does not reach the grid, or is not to be carried to
                the run's conditions.
        """
        conditions = self._conditions(run)
        left = Grid.from_sigmas(grid.sigmas[begin:]) if begin else grid
        steps = left.num_inference_steps
        budget = min(steps, max(1, round(self.budget * steps / grid.num_inference_steps)))
        key = left.sigmas, budget, repr(sorted(conditions.items()))
        with self._lock:
            if key not in self._solved:
                self._solved[key] = self._solve(left, budget, conditions)
                while len(self._solved) > KEPT:
                    del self._solved[next(iter(self._solved))]
            return self._solved[key]

    def _solve(self, grid: Grid, budget: int, conditions: dict[str, Any]) -> Schedule:
        schedule = self.calibration.schedule(
            grid, budget, conditions=conditions, strict=self.strict
        )
        schedule = replace(schedule, conditions={})  # of this run alone, which has been checked
        beyond = {k: v for k, v in schedule.calibration.get("carried", {}).items() if k != "grid"}
        if beyond:
            words = ", ".join(
                f"{name} {shown(both['from'])} -> {shown(both['to'])}"
                for name, both in beyond.items()
            )
            logger.warning("the calibration is carried to another setting: %s", words)
        return schedule

    def _conditions(self, run: Run) -> dict[str, Any]:
        """The run's conditions where they can be read; elsewhere the calibration's."""
        pipeline = self.calibration.model.get("pipeline")
        known = dict(self.calibration.conditions)
        known.pop("negative_prompt", None)
        differences = run.differences({"pipeline": pipeline, **known})
        found = {one.name: one.found for one in differences}
        if "pipeline" in found:
            raise ScheduleError(
                f"the calibration is of a {pipeline}, but a {found['pipeline']} runs: a "
                "calibration serves the model that it was made on alone"
            )
        return {**known, **found}
