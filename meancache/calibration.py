"""One model's calibration: statistics of its reference trajectories, good for any of its runs.

A reference trajectory of gigabytes shrinks to two small tables (`statistics`). They are keyed by
(prompt_id, seed) and only ever averaged, so calibrations merge in any order, and merging the same
trajectory twice changes nothing. `Calibration.on` carries them to another run's noise levels
(`carrying`), and `Calibration.schedule` solves a schedule there: neither runs a model.

>>> calibration = Calibration.load("calibration.parquet")
>>> calibration.schedule(Grid.from_scheduler(pipe.scheduler), budget=10)
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from meancache import calibration_file, methods
from meancache.carrying import carried_conditions, carrying_weights
from meancache.errors import CalibrationError, SolverError
from meancache.grid import Grid
from meancache.json_values import canonical_json, shown
from meancache.prediction import predicted_psnr
from meancache.run_schedules import RunSchedules
from meancache.schedule import MAX_SPAN, Schedule
from meancache.statistics import Statistics, edge_count, edge_list, paper_residuals


@dataclass(frozen=True)
class Calibration:
    """The statistics of many trajectories of one model under one set of conditions.

    Attributes:
        grid: the noise levels of the run that was recorded.
        below: levels between the last of them and 0 that were recorded too, falling; runs of more
            steps or of a smaller shift end there.
        model: {id, revision, pipeline}.
        conditions: {height, width, num_frames, guidance_scale, dtype, lora}.
        trajectories: key -> statistics, one entry a (prompt_id, seed).
        origin: the calibration that this one was carried from (`on`); None for one as it was
            measured.
    """

    grid: Grid
    model: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    trajectories: Mapping[tuple[str, int], Statistics] = field(default_factory=dict)
    below: tuple[float, ...] = ()
    origin: Calibration | None = None

    def __post_init__(self) -> None:
        levels, edges = self.recorded.num_inference_steps, edge_count(self.grid.num_inference_steps)
        for statistics in self.trajectories.values():
            if len(statistics.gram) != levels or len(statistics.l1) not in (0, edges):
                raise CalibrationError(
                    f"the trajectory of {shown(statistics.prompt_id)}, seed {statistics.seed}, has "
                    f"{len(statistics.gram)} steps; the calibration's grid has {levels}"
                )

    def add(self, statistics: Iterable[Statistics]) -> Calibration:
        """This calibration with more trajectories; those already in it stay as they are."""
        added = {item.key: item for item in statistics}
        merged = {**added, **self.trajectories}
        ordered = {key: merged[key] for key in sorted(merged)}
        return replace(self, trajectories=ordered)

    def merge(self, other: Calibration) -> Calibration:
        """Both calibrations' trajectories, each once.

        Raises:
            CalibrationError: they differ in model, conditions or grid, of which it names the
                field; or one of them was carried to its grid.
        """
        for name in ("model", "conditions"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key in sorted({*mine, *theirs}):
                if mine.get(key) != theirs.get(key):
                    raise CalibrationError(
                        f"the calibrations differ in {name}.{shown(key)[1:-1]}: "
                        f"{shown(mine.get(key))} and {shown(theirs.get(key))}; only trajectories "
                        "of one setting can be merged"
                    )
        if not self.recorded.matches(other.recorded.sigmas):
            raise CalibrationError(
                f"the calibrations' grids differ: {self.recorded} and {other.recorded}"
            )
        for one in (self, other):
            one._refuse_carried("merged")
        return self.add(other.trajectories.values())

    @cached_property
    def recorded(self) -> Grid:
        """All N noise levels that velocities are known of, and the final 0: `grid` and `below`."""
        if not self.below:
            return self.grid
        return replace(self.grid, sigmas=(*self.grid.sigmas[:-1], *self.below, 0.0))

    @property
    def id(self) -> str:
        """sha256 over the setting and all statistics, 64 hex digits; carried, its origin's."""
        if self.origin is not None:
            return self.origin.id
        digest = hashlib.sha256(canonical_json(self.setting()))
        for item in self.ordered():
            digest.update(canonical_json([item.prompt_id, item.prompt, item.seed, item.elements]))
            digest.update(item.gram.tobytes())
            digest.update(item.l1.tobytes())
        return digest.hexdigest()

    def plain(self) -> Calibration:
        """This calibration without the levels below its grid, as older files have it."""
        steps = self.grid.num_inference_steps
        kept = {
            key: replace(item, gram=item.gram[:steps, :steps])
            for key, item in self.trajectories.items()
        }
        return replace(self, trajectories=kept, below=())

    def on(self, grid: Grid | Sequence[float]) -> Calibration:
        """This calibration at the noise levels of another run; itself where they are its own.

        Args:
            grid: the run's, or its sigmas with the final 0.

        Returns:
            A calibration for `grid` and under the same conditions, of the same trajectories. It
            has no L1 costs, and cannot be merged or saved: that is for its origin.

        Raises:
            CalibrationError: a level lies outside of those calibrated (`carrying.check_range`), or
                the sigmas are no grid.
        """
        if not isinstance(grid, Grid):
            try:
                grid = Grid.from_sigmas(grid)
            except (TypeError, ValueError) as error:
                raise CalibrationError(f"not a grid of noise levels: {error}") from error
        if self.grid.matches(grid.sigmas):
            return self
        source = self.origin or self
        if source.grid.matches(grid.sigmas):
            return source
        weights = carrying_weights(source.recorded, grid)
        carried = {key: item.carried(weights) for key, item in source.trajectories.items()}
        return Calibration(grid, source.model, source.conditions, carried, origin=source)

    def schedule(
        self,
        grid: Grid | Sequence[float],
        budget: int | None = None,
        method: str = "fitted",
        *,
        target_psnr: float | None = None,
        conditions: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> Schedule:
        """A schedule for a run on `grid`, solved here: no model is run and no torch is needed.

        What had to be carried to the run is noted in the schedule, `calibration.carried`.

        Args:
            grid: the run's noise levels, or its sigmas with the final 0.
            budget: B, the forwards that the run may take, 1..T.
            method: 'fitted' (weights by least squares on the calibration's velocities), 'secant'
                or 'paper'.
            target_psnr: in place of a budget: the smallest one whose estimate reaches so many dB.
            conditions: of the run, {height, width, ...}; the schedule is refused under others.
                None leaves them open, so that it runs under any.
            strict: refuse every carrying but to another grid; conditions that are not given are
                the calibration's then.

        Raises:
            CalibrationError: the grid reaches outside of the calibration's levels, it is strict
                and the conditions are others, or there is no trajectory.
            SolverError: the budget, the target or the method breaks a rule.
        """
        if (budget is None) == (target_psnr is None):
            raise SolverError("give either a budget of forwards or a target PSNR in dB")
        here = self.on(grid)
        steps = here.grid.num_inference_steps
        budgets = range(1, steps + 1) if budget is None else [budget]
        solved = self.schedules(here.grid, budgets, method, conditions=conditions, strict=strict)
        for made in solved.values():
            psnr = made.estimated_psnr  # None where nothing is missed
            if target_psnr is None or psnr is None or psnr >= target_psnr:
                break
        return made

    def schedules(
        self,
        grid: Grid | Sequence[float],
        budgets: Sequence[int],
        method: str = "fitted",
        *,
        gamma: float | None = None,
        execution: str = methods.PAPER_EXECUTION,
        conditions: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> dict[int, Schedule]:
        """As `schedule`, for several budgets at once.

        Args:
            grid: the runs' noise levels, or their sigmas with the final 0.
            budgets: B, each 1..T.
            method: 'fitted', 'secant' or 'paper'.
            gamma: peak suppression; None takes the method's own.
            execution: 'jump' or 'fine-step', for the paper's method.
            conditions: of the runs; None leaves them open.
            strict: refuse every carrying but to another grid.

        Raises:
            CalibrationError, SolverError: as `schedule`.
        """
        if strict and conditions is None:
            conditions = self.conditions
        here = self.on(grid)
        carried = carried_conditions(self.conditions, conditions or {}, strict)
        if here.origin is not None:
            carried["grid"] = {"from": str(here.origin.grid), "to": str(here.grid)}
        gram, beyond_grid = here.gram(), bool(set(carried) - {"grid"})
        found = {}
        for budget, made in methods.solve(here, budgets, method, gamma, execution).items():
            record = {**made.calibration, **({"carried": carried} if carried else {})}
            psnr = predicted_psnr(made, gram, beyond_grid)
            if math.isfinite(psnr):
                record["psnr_estimate"] = round(psnr, 1)
            found[budget] = replace(made, conditions=dict(conditions or {}), calibration=record)
        return found

    def source(self, budget: int | None, strict: bool = False) -> RunSchedules:
        """What gives every run of a pipeline its schedule (`apply_mean_cache`).

        Raises:
            ScheduleError: the budget is no whole number from 1.
            CalibrationError: the calibration has no trajectory.
        """
        return RunSchedules(self, budget, strict)

    def costs(self) -> np.ndarray:
        """The paper's cost of every edge, averaged over the trajectories (eq. 13).

        Returns:
            (MAX_SPAN, T, T + 1) float64: costs[span - 1, start, stop], inf where no edge is.

        Raises:
            CalibrationError: the calibration has no trajectory, or was carried: means of absolute
                values cannot be (`costs_in_rms` can).
        """
        self._refuse_carried("asked for L1 costs")
        return self._table(np.mean([item.l1 for item in self.nonempty()], axis=0))

    def costs_in_rms(self) -> np.ndarray:
        """The paper's costs with a root of mean squares in the place of the mean of eq. 13.

        Returns:
            (MAX_SPAN, T, T + 1) float64, as `costs`.

        Raises:
            CalibrationError: the calibration has no trajectory.
        """
        residuals = paper_residuals(self.grid)
        squares = ((residuals @ self.gram()) * residuals).sum(axis=1)
        return self._table(np.sqrt(np.maximum(squares, 0.0)))

    def gram(self) -> np.ndarray:
        """V V^T / D averaged over the trajectories: every squared cost follows (`costs`).

        Returns:
            (T, T) float64.

        Raises:
            CalibrationError: the calibration has no trajectory.
        """
        steps = self.grid.num_inference_steps
        return np.mean([item.gram[:steps, :steps] for item in self.nonempty()], axis=0)

    def spread(self, count: int) -> list[Statistics]:
        """Up to `count` trajectories that can be run again, evenly spread over all of them.

        Raises:
            CalibrationError: no trajectory holds its prompt.
        """
        known = [item for item in self.nonempty() if item.prompt]
        if not known:
            raise CalibrationError(
                "the calibration holds no prompts to run again: calibrate anew, or solve with "
                "--method secant, which runs no model"
            )
        count = min(count, len(known))
        return [known[index * len(known) // count] for index in range(count)]

    def ordered(self) -> list[Statistics]:
        """The trajectories' statistics in the order of their keys."""
        return [self.trajectories[key] for key in sorted(self.trajectories)]

    def nonempty(self) -> list[Statistics]:
        """As `ordered`. Raises CalibrationError where there is no trajectory."""
        if not self.trajectories:
            raise CalibrationError(
                "the calibration has no trajectory; calibrate at least one prompt"
            )
        return self.ordered()

    def setting(self) -> dict[str, Any]:
        """Model, grid and conditions as JSON: what its trajectories have in common."""
        return {
            "model": dict(self.model),
            "grid": self.grid.to_json(),
            "conditions": dict(self.conditions),
            **({"below": list(self.below)} if self.below else {}),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads a calibration file.

        Raises:
            CalibrationError: the file is missing or is not a calibration; names the file.
        """
        try:
            return cls.from_parquet(Path(path).read_bytes())
        except OSError as error:
            raise CalibrationError(f"calibration {os.fspath(path)}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"calibration {os.fspath(path)!r}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the calibration file, which holds all there is.

        Raises:
            CalibrationError: this calibration was carried to another grid.
        """
        Path(path).write_bytes(self.statistics_parquet())

    @classmethod
    def from_parquet(cls, data: bytes) -> Calibration:
        """Reads what `statistics_parquet` wrote.

        Raises:
            CalibrationError: the bytes are not such a file, or its content breaks a rule.
        """
        return calibration_file.read(cls, data)

    def statistics_parquet(self) -> bytes:
        """The bytes of the calibration file: a row a trajectory (STATISTICS_SCHEMA)."""
        self._refuse_carried("saved")
        return calibration_file.statistics_table(self)

    def multigraph_parquet(self) -> bytes:
        """The merged multigraph as an edge table (MULTIGRAPH_SCHEMA), for people and plots."""
        self._refuse_carried("saved")
        return calibration_file.multigraph_table(self)

    def _table(self, costs: np.ndarray) -> np.ndarray:
        steps = self.grid.num_inference_steps
        start, stop, span = np.array(edge_list(steps)).T
        table = np.full((MAX_SPAN, steps, steps + 1), np.inf)
        table[span - 1, start, stop] = costs
        return table

    def _refuse_carried(self, wanted: str) -> None:
        if self.origin is not None:
            raise CalibrationError(
                f"a calibration that was carried from {self.origin.grid} to {self.grid} cannot be "
                f"{wanted}: do it with the one that it was carried from, as that is all there is"
            )
