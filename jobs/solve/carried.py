"""Schedules for another setting than the calibration's own: carried there, and no model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from cluster.models.model import Model, find_model
from jobs._shared.calibrations import check_calibration, conditions_of
from meancache.calibration import Calibration
from meancache.errors import CalibrationError
from meancache.grid import Grid
from meancache.methods import PAPER_EXECUTION
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Setting:
    """The runs that schedules are for, where they differ from the calibration's; None for the same.

    Attributes:
        steps: denoising steps (num_inference_steps).
        shift: of the noise levels; for a scheduler that shifts by the size, in the place of that.
        height: pixels.
        width: pixels.
        num_frames: of a video.
        guidance_scale: of the pipeline's usual guidance.
        true_cfg_scale: of guidance in two forwards.
        dtype: of the model.
    """

    steps: int | None = None
    shift: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    dtype: str | None = None


SAME = Setting()


@dataclass(frozen=True)
class Carried:
    """A calibration and the runs that it is to serve.

    Attributes:
        calibration: of the model.
        grid: of the runs.
        conditions: of the runs.
    """

    calibration: Calibration
    grid: Grid
    conditions: Mapping[str, Any]

    def schedules(
        self,
        budgets: Sequence[int],
        method: str,
        gamma: float | None,
        execution: str | None,
        strict: bool,
    ) -> dict[int, Schedule]:
        """One schedule a budget. Raises CalibrationError, SolverError."""
        return self.calibration.schedules(
            self.grid,
            budgets,
            method,
            gamma=gamma,
            execution=execution or PAPER_EXECUTION,
            conditions=self.conditions,
            strict=strict,
        )


def carry(calibration: Calibration, setting: Setting, any_revision: bool) -> Carried | None:
    """The runs of a setting; None where it is the calibration's own.

    Raises:
        CalibrationError: the calibration names no model, or another revision than is here.
        ModelError: the model cannot run the setting.
    """
    given = {field.name: getattr(setting, field.name) for field in fields(setting)}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    dtype = given.pop("dtype", None) or calibration.conditions.get("dtype")
    model = _model(calibration, dtype, any_revision, given.pop("shift", None))
    known = {
        name: value
        for name, value in calibration.conditions.items()
        if name in model.kind.takes and value is not None
    }
    steps = given.pop("steps", calibration.grid.num_inference_steps)
    arguments = {**model.defaults, **known, **given, "num_inference_steps": steps}
    model.check_arguments(arguments, 1)
    grid, conditions = model.grid(steps, arguments), conditions_of(model, arguments)
    own = {**calibration.conditions, **conditions} == dict(calibration.conditions)
    if own and calibration.grid.matches(grid.sigmas):
        return None
    return Carried(calibration, grid, conditions)


def _model(
    calibration: Calibration, dtype: str | None, any_revision: bool, shift: float | None
) -> Model:
    """The calibration's model, at the given shift of its noise levels."""
    known = calibration.model
    if "id" not in known:
        raise CalibrationError(
            "the calibration names no model, whose noise levels would follow from a setting: use "
            "Calibration.schedule in Python, with the noise levels themselves"
        )
    embedded = known["id"] == "tiny" or any_revision
    model = find_model(known["id"], None if embedded else known.get("revision"), dtype)
    check_calibration(calibration, model, any_revision)
    if shift is None:
        return model
    return replace(
        model, scheduler={**model.scheduler, "use_dynamic_shifting": False, "shift": shift}
    )
