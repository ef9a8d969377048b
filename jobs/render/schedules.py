"""Which schedule a render runs: a file, a shipped one, or the one that is current in a registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.models.model import Model
from cluster.results import registry
from cluster.store import StoreError, open_store, read
from cluster.work import plan
from jobs._shared.predictions import prediction, smallest_budget
from jobs.render.config import Config
from meancache.errors import ScheduleError
from meancache.schedule import Schedule

SHIPPED = Path(__file__).parents[2] / "schedules"
# What --schedule calls the one that is current in a registry; a file of that name is ./current.
CURRENT = "current"


def choose(config: Config, model: Model, arguments: Mapping[str, Any]) -> Schedule | None:
    """The schedule of --schedule, or a shipped one that was asked for, or None for every step."""
    if (config.registry is None) != (config.schedule != CURRENT):
        raise ScheduleError(
            "--schedule current and --registry ROOT, the --output of jobs.refresh, go together: "
            "give both or neither"
        )
    by_file = config.schedule not in (None, CURRENT)
    if config.budget is not None and (by_file or config.target_psnr is not None):
        raise ScheduleError(
            "--budget is not allowed with --schedule FILE or --target-psnr: give one of them"
        )
    if config.registry is not None:  # and with it CURRENT
        # What this root's job began with: a promotion since then is for other jobs.
        frozen = plan.frozen_schedule(open_store(config.output))
        if frozen is not None and config.budget in (None, frozen.budget):
            return frozen
        setting = registry.setting_of(model, arguments)
        return registry.find_current(open_store(config.registry), setting, config.budget)
    if config.schedule is not None:
        try:
            return Schedule.loads(read(config.schedule))
        except (StoreError, ScheduleError) as error:
            raise ScheduleError(f"schedule {config.schedule}: {error}") from error
    if config.budget is None and config.target_psnr is None:
        return None
    return _shipped(config, model, arguments["num_inference_steps"])


def _shipped(config: Config, model: Model, steps: int) -> Schedule:
    """The schedule of --budget or --target-psnr among those that ship with the project."""
    if config.budget is not None and not 1 <= config.budget <= steps:
        raise ScheduleError(f"budget {config.budget} must be between 1 and the {steps} steps")
    folder = SHIPPED / model.id.rpartition("/")[2]
    shipped = {
        schedule.budget: schedule for schedule in map(Schedule.load, folder.glob("fitted-b*.json"))
    }
    if config.target_psnr is not None and shipped:
        chosen = smallest_budget(
            list(shipped.values()),
            config.target_psnr,
            "ask for less, or make schedules of larger budgets with jobs.calibrate and jobs.solve",
        )
        print(f"render: {chosen.nfe} forwards, predicted{prediction(chosen).removeprefix(',')}")
        return chosen
    if config.budget is None or config.budget not in shipped:
        wanted = "" if config.budget is None else f" of budget {config.budget}"
        raise ScheduleError(
            f"no schedule{wanted} is shipped for {model.id} (shipped: "
            f"{', '.join(map(str, sorted(shipped))) or 'none'}): run jobs.calibrate and "
            "jobs.solve, and give the file with --schedule"
        )
    return shipped[config.budget]
