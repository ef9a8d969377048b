"""Which baselines there are: ready as they are, to be calibrated first, or not usable here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meancache.baselines.baseline import Baseline, BaselineError
from meancache.baselines.caches import caches, magcache
from meancache.baselines.dbcache import INSTALL, dbcaches, is_installed
from meancache.baselines.field import Field
from meancache.baselines.optimal_stepsize import optimal_schedules
from meancache.baselines.refined import refine
from meancache.baselines.solvers import solvers
from meancache.baselines.teacache import rescaled_teacaches, teacaches
from meancache.schedule import Schedule


def sweep() -> list[Baseline]:
    """Every baseline that needs no calibration, over its own knob, from much compute to little.

    Where a method has settings for it, they span about 10% to 50% of the transformer's compute.
    """
    return [*solvers(), *caches(), *dbcaches(), *teacaches()]


def calibrated(
    pipeline: Any, runs: Sequence[Callable[..., Any]], schedules: Mapping[int, Schedule]
) -> list[Baseline | Schedule]:
    """The baselines that calibrate on runs of the very pipeline.

    Ten small trajectories and five budgets take about two minutes on one core.

    Args:
        pipeline: a diffusers flow-matching pipeline, without any cache or schedule on it.
        runs: run(**overrides) draws one calibration trajectory through `pipeline` from its own
            fixed noise, with output_type='latent'; one forward a step.
        schedules: {budget: the `fitted` schedule to refine}; their budgets are Optimal
            Stepsize's too.

    Returns:
        MagCache and the rescaled TeaCache as baselines; 'optimal-stepsize' and 'refined' as
        schedules, one of each for every budget.

    Raises:
        BaselineError: the runs are none, or unlike each other, or not on the schedules' grid; or a
            schedule has no weights to refine.
    """
    field = Field(pipeline, runs)
    for budget, schedule in schedules.items():
        if not schedule.grid.matches(field.grid.sigmas):
            raise BaselineError(
                f"the schedule of budget {budget} is for {schedule.grid}, but the calibration "
                f"runs are on {field.grid}: give runs and schedules of one grid"
            )
        if schedule.edges[0].weights is None:
            raise BaselineError(
                f"the schedule of budget {budget} has spans, not weights: give a `fitted` one"
            )
    baselines = [
        *magcache(pipeline, runs, field.grid.num_inference_steps),
        *rescaled_teacaches(pipeline, runs),
    ]
    if not schedules:
        return [*baselines]
    with field.frozen():
        reference = field.reference()
        return [
            *baselines,
            *optimal_schedules(field, reference, schedules),
            *(refine(field, field.noise, reference[-1], each) for each in schedules.values()),
        ]


def unusable() -> list[tuple[str, str]]:
    """(method, reason) for the baselines that cannot run here; the tests try each of them."""
    reasons = [
        (
            "seacache",
            "diffusers' SeaCache computes every step: it asks for the step index, the sigma and "
            "the step count in cache_context, and HunyuanVideoPipeline gives none of them",
        )
    ]
    if not is_installed():
        reasons += [
            (method, f"cache-dit is not installed: {INSTALL}")
            for method in ("dbcache", "dbcache-taylorseer")
        ]
    return reasons
