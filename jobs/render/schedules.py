"""Which schedules a render runs.

A file, a shipped one or the one that is current in a registry serve all rows alike; from a
calibration each setting of the rows gets one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from cluster.models.model import Model, ModelError
from cluster.results import calibration_registry, registry
from cluster.store import StoreError, open_store, read
from cluster.work import plan
from cluster.work.schedule_table import Chosen, ScheduleTable
from jobs._shared.calibrations import (
    SHIPPED,
    carried_schedule,
    check_calibration,
    read_calibration,
    shipped_calibration,
)
from jobs._shared.predictions import prediction, smallest_budget
from jobs.render.config import Config
from meancache.calibration import Calibration
from meancache.errors import ScheduleError
from meancache.schedule import Schedule

# What --schedule calls the one that is current in a registry; a file of that name is ./current.
CURRENT = "current"


def choose(
    config: Config,
    model: Model,
    arguments: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
) -> Chosen:
    """What the flags ask for; None computes every step.

    Args:
        config: with at most one of a schedule, a calibration and neither.
        model: what renders.
        arguments: of the call, where a row does not override them.
        settings: the arguments of the rows' calls, one of each setting, by `setting_key`.
    """
    _check_flags(config)
    if config.calibration is not None:
        return _solved(_calibration(config, model), config, model, settings)
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
    return _shipped(config, model, settings)


def _check_flags(config: Config) -> None:
    """Refuses flags that contradict each other. Raises ScheduleError."""
    if (config.registry is None) == (CURRENT in (config.schedule, config.calibration)):
        raise ScheduleError(
            "--schedule current, or --calibration current, and --registry ROOT, the --output of "
            "jobs.refresh, go together: give both or neither"
        )
    by_file = config.schedule not in (None, CURRENT)
    if config.budget is not None and (by_file or config.target_psnr is not None):
        raise ScheduleError(
            "--budget is not allowed with --schedule FILE or --target-psnr: give one of them"
        )
    if config.schedule is not None and config.target_psnr is not None:
        raise ScheduleError("--target-psnr is not allowed with --schedule: give one of them")
    if config.calibration is not None and config.budget is None and config.target_psnr is None:
        raise ScheduleError("--calibration needs --budget B, the forwards of a video")


def _calibration(config: Config, model: Model) -> Calibration:
    """That of --calibration: a file, or the one that is current in the registry."""
    if config.calibration == CURRENT and config.registry is not None:
        # What this root's job began with: a promotion since then is for other jobs.
        begun = plan.frozen_calibration(open_store(config.output))
        key = {**model.key} if not config.any_revision else {"id": model.id}
        return calibration_registry.find_current(open_store(config.registry), key, begun)
    assert config.calibration is not None
    return read_calibration(config.calibration)


def _solved(
    calibration: Calibration,
    config: Config,
    model: Model,
    settings: Mapping[str, Mapping[str, Any]],
    ready: Mapping[str, Schedule] = MappingProxyType({}),
) -> ScheduleTable:
    """A schedule for each setting, those of `ready` as they are."""
    check_calibration(calibration, model, config.any_revision)
    found = {
        key: ready[key]
        if key in ready
        else carried_schedule(
            calibration,
            model,
            arguments,
            config.budget,
            config.target_psnr,
            strict=config.strict,
        )
        for key, arguments in settings.items()
    }
    return ScheduleTable(found)


def _shipped(
    config: Config, model: Model, settings: Mapping[str, Mapping[str, Any]]
) -> Schedule | ScheduleTable:
    """What ships for --budget or --target-psnr.

    A schedule that was fitted on the very setting, where one ships, and for all other settings the
    calibration.
    """
    steps = max(arguments["num_inference_steps"] for arguments in settings.values())
    if config.budget is not None and not 1 <= config.budget <= steps:
        raise ScheduleError(f"budget {config.budget} must be between 1 and the {steps} steps")
    fitted = _fitted(config, model)
    suited = {} if fitted is None else _suited(fitted, model, settings)
    if fitted is not None and len(suited) == len(settings):
        if config.target_psnr is not None:
            print(f"render: {fitted.nfe} forwards, predicted{prediction(fitted).removeprefix(',')}")
        return fitted
    calibration = shipped_calibration(model)
    if calibration is None:
        if fitted is not None:
            return fitted  # and what does not suit it says why
        wanted = "" if config.budget is None else f" of budget {config.budget}"
        raise ScheduleError(
            f"no schedule{wanted} and no calibration is shipped for {model.id}: run "
            "jobs.calibrate, and give its file with --calibration"
        )
    return _solved(calibration, config, model, settings, suited)


def _fitted(config: Config, model: Model) -> Schedule | None:
    """The fitted schedule that ships for --budget, or the smallest that reaches --target-psnr."""
    folder = SHIPPED / model.id.rpartition("/")[2]
    shipped = [Schedule.load(path) for path in sorted(folder.glob("fitted-b*.json"))]
    if config.target_psnr is not None and shipped:
        return smallest_budget(
            shipped,
            config.target_psnr,
            "ask for less, or make schedules of larger budgets with jobs.calibrate and jobs.solve",
        )
    return next((one for one in shipped if one.budget == config.budget), None)


def _suited(
    schedule: Schedule, model: Model, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Schedule]:
    """The settings that a schedule was made for."""
    found = {}
    for key, arguments in settings.items():
        with suppress(ModelError):
            model.check_schedule(schedule, arguments)
            found[key] = schedule
    return found
