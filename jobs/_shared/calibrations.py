"""Calibrations as jobs use them: read from a store, and carried to the setting of a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.models.adapter_names import LORA
from cluster.models.model import Model
from cluster.store import StoreError, read
from meancache.calibration import Calibration
from meancache.carrying import check_model
from meancache.errors import CalibrationError
from meancache.schedule import Schedule

SHIPPED = Path(__file__).parents[2] / "schedules"
FILE = "calibration.parquet"


def read_calibration(uri: str) -> Calibration:
    """A calibration file, local or s3://. Raises CalibrationError, which names it."""
    try:
        return Calibration.from_parquet(read(uri))
    except (StoreError, CalibrationError) as error:
        raise CalibrationError(f"calibration {uri}: {error}") from error


def shipped_calibration(model: Model) -> Calibration | None:
    """The one that ships with the project for this very model, if there is one."""
    path = SHIPPED / model.id.rpartition("/")[2] / FILE
    return Calibration.load(path) if path.is_file() else None


def carried_schedule(
    calibration: Calibration,
    model: Model,
    arguments: Mapping[str, Any],
    budget: int | None,
    target_psnr: float | None = None,
    method: str = "fitted",
    strict: bool = False,
) -> Schedule:
    """A schedule for calls with these arguments; no model is run.

    Args:
        calibration: of the model (`check_calibration`).
        model: what runs.
        arguments: of its call, complete.
        budget: B; a call of fewer steps computes all of them.
        target_psnr: in place of a budget, see `Calibration.schedule`.
        method: of `meancache.methods.METHODS`.
        strict: refuse to carry to anything but another grid.

    Raises:
        CalibrationError: the calibration does not reach the call's noise levels, or is not to be
            carried to its conditions.
        SolverError: the budget breaks a rule.
    """
    steps = arguments["num_inference_steps"]
    conditions = conditions_of(model, arguments)
    if calibration.conditions.get(LORA):  # else it says nothing of adapters, nor does the schedule
        conditions[LORA] = conditions[LORA] or []
    return calibration.schedule(
        model.grid(steps, arguments),
        None if budget is None else min(budget, steps),
        method,
        target_psnr=target_psnr,
        conditions=conditions,
        strict=strict,
    )


def conditions_of(model: Model, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of a call; whatever a negative prompt says, its schedule is the same."""
    conditions = model.conditions(arguments)
    if "negative_prompt" in conditions:
        conditions["negative_prompt"] = ""
    return conditions


def check_calibration(calibration: Calibration, model: Model, any_revision: bool = False) -> None:
    """Refuses a calibration of another model. Raises CalibrationError."""
    check_model(calibration.model, model.key, any_revision)


def carried_words(schedule: Schedule) -> str:
    """'carried from 50 steps, sigma 1, ... to ...; from height 64 to 96', or nothing."""
    carried = schedule.calibration.get("carried")
    if not isinstance(carried, Mapping):
        return ""
    words = [
        f"{name.replace('_', ' ')} {both['from']} -> {both['to']}"
        for name, both in carried.items()
        if name != "grid"
    ]
    return f"carried from {', '.join(words)}" if words else "carried to its grid"
