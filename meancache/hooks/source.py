"""Where the schedule of a run comes from: a fixed one, or one that is made for the run.

Before the first forward of every run the hook asks its source:

    schedule_for(grid: Grid, run: RunConditions, begin: int) -> Schedule

- `grid`: the levels that the run's scheduler really has, the final 0 included.
- `run`: what else can be read of the run; `run.differences({**model, **conditions})` lists what is
  not as it was where the schedule or calibration was made.
- `begin`: the step that the run starts at; above 0 in image to image, video to video.

It returns a schedule on `grid`, or on `grid`'s levels from `begin` on, and raises a ScheduleError
where there is none. It is asked again in every run, also in several threads at once: a source that
solves keeps what it has solved.

`apply_mean_cache(pipe, what, budget=..., strict=...)` takes a `Schedule` or anything with a method
`source(budget, strict) -> ScheduleSource`, as a calibration has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.hooks.conditions import Difference, RunConditions
from meancache.json_values import shown
from meancache.schedule import Schedule


class ScheduleSource(Protocol):
    """Gives every run its schedule; see the module's docstring."""

    def schedule_for(self, grid: Grid, run: RunConditions, begin: int) -> Schedule: ...


@dataclass(frozen=True)
class FixedSchedule:
    """The same schedule for all runs; other runs than it was made for are refused."""

    schedule: Schedule

    def schedule_for(self, grid: Grid, run: RunConditions, begin: int) -> Schedule:
        schedule = self.schedule
        if not schedule.grid.matches(grid.sigmas):
            raise ScheduleError(
                f"the schedule is for a grid of {schedule.grid}, but the pipeline runs {grid}: "
                "set num_inference_steps and the scheduler's shift to the schedule's, or solve a "
                "schedule for this grid"
            )
        self.check(run, {"pipeline": schedule.model.get("pipeline"), **schedule.conditions})
        return schedule

    def check_lora(self, lora: list[str]) -> None:
        """Refuses other adapters than the schedule's.

        Raises:
            ScheduleError: names them.
        """
        self.check(RunConditions(None, "", lora), {"lora": self.schedule.conditions.get("lora")})

    def check(self, run: RunConditions, wanted: Mapping[str, Any]) -> None:
        """Refuses a run that does not meet what is wanted.

        Raises:
            ScheduleError: names what differs, as it is in the schedule and in the run.
        """
        for one in run.differences(wanted):
            raise ScheduleError(_refusal(one))


def source_of(what: Any, budget: int | None, strict: bool) -> ScheduleSource:
    """The source that `apply_mean_cache` was given.

    Raises:
        ScheduleError: it is none, or a budget was given for a schedule, which has its own.
    """
    if isinstance(what, Schedule):
        if budget is not None:
            raise ScheduleError(
                f"budget {budget} was given with a schedule, which has a budget of its own "
                f"({what.budget}): leave it out, or give a calibration"
            )
        return FixedSchedule(what)
    if not hasattr(what, "source"):
        raise ScheduleError(
            f"a {type(what).__name__} is neither a Schedule nor a Calibration; load one of these "
            "from its file (Schedule.load, Calibration.load)"
        )
    source: ScheduleSource = what.source(budget, strict)
    return source


def _refusal(one: Difference) -> str:
    if one.name == "lora":
        return (
            f"the schedule was made for {_adapters(one.wanted)}, but the transformer runs "
            f"{_adapters(one.found)}: set the schedule's adapters, or solve a schedule for these"
        )
    found = "has none" if one.found is None else f"runs {one.name} {shown(one.found)}"
    return (
        f"the schedule was made for {one.name} {shown(one.wanted)}, but the pipeline {found}: run "
        "it as the schedule says, or solve a schedule for this setting"
    )


def _adapters(lora: Any) -> str:
    names = sorted([lora] if isinstance(lora, str) else lora)
    return f"LoRA {', '.join(shown(name)[1:-1] for name in names)}" if names else "no LoRA"
