"""The schedules of a job as its page shows them, those of several settings with these in words."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cluster.models.model import CONDITIONS
from meancache.errors import ScheduleError
from meancache.schedule import Schedule


def schedules_in(spec: Mapping[str, Any]) -> list[tuple[str, Schedule]]:
    """(setting in words, schedule) of each in a job.json; damaged ones are left out.

    The words are empty where one schedule serves all rows.
    """
    single = spec["schedule"]
    several = spec.get("schedules", [])
    known = [single] if single is not None else several if isinstance(several, list) else []
    found = []
    for one in known:
        with suppress(ScheduleError):
            schedule = Schedule.from_json(one)
            found.append((_words(schedule) if single is None else "", schedule))
    return found


def _words(schedule: Schedule) -> str:
    """'30 steps, height 96, width 96, guidance scale 6'."""
    given = (
        f"{name.replace('_', ' ')} {value}"
        for name, value in schedule.conditions.items()
        if name in CONDITIONS and value is not None
    )
    return ", ".join([f"{schedule.num_inference_steps} steps", *given])
