"""One calibration on real pipelines: any size, steps and start, exactly B forwards a run."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from meancache import apply_mean_cache, remove_mean_cache
from meancache.calibration import Calibration
from meancache.errors import CalibrationError, ScheduleError
from meancache.grid import Grid
from meancache.statistics import trajectory_statistics
from meancache.trajectory import record_trajectory
from tests.support.small_pipelines import DYNAMIC, STEPS, Small, build, scheduler

BUDGET = 4
SIZES = [(32, 48), (64, 48), (96, 96)]


def calibrated(small: Small, **changes) -> Calibration:
    """Of one trajectory of the small pipeline."""
    with record_trajectory(small.pipe) as trajectory:
        small.draw(**changes)
    grid = Grid.from_scheduler(small.pipe.scheduler)
    steps = grid.num_inference_steps
    return Calibration(grid, {"pipeline": type(small.pipe).__name__}).add(
        [trajectory_statistics(trajectory.velocities(steps), grid, "p", 0)]
    )


def explicit(small: Small, calibration: Calibration, **changes) -> torch.Tensor:
    """The run by the schedule that the calibration gives for the grid of a plain run."""
    small.draw(**changes)
    schedule = calibration.schedule(Grid.from_scheduler(small.pipe.scheduler), BUDGET)
    apply_mean_cache(small.pipe, schedule)
    try:
        return small.draw(**changes)
    finally:
        remove_mean_cache(small.pipe)


@pytest.fixture(params=["FLUX.1", "Qwen-Image", "Z-Image"])
def small(request) -> Small:
    """A pipeline that shifts its noise levels with the size."""
    found = build(request.param)
    found.pipe.scheduler = scheduler(**DYNAMIC)
    return found


def test_one_calibration_serves_every_resolution_with_exactly_b_forwards(small):
    calibration = calibrated(small)
    sizes = [{"height": height, "width": width} for height, width in SIZES]
    expected = [explicit(small, calibration, **size) for size in sizes]
    hook = apply_mean_cache(small.pipe, calibration, budget=BUDGET)
    schedules = []
    try:
        for number, (size, latents) in enumerate(zip(sizes, expected, strict=True), start=1):
            assert torch.equal(small.draw(**size), latents)
            assert hook.forwards == number * BUDGET * small.case.calls
            assert hook.schedule.grid.matches(small.pipe.scheduler.sigmas.tolist())
            schedules.append(hook.schedule)
        assert len({one.id for one in schedules}) == 3
        small.draw(**sizes[0])
        assert hook.schedule is schedules[0]  # solved once
    finally:
        remove_mean_cache(small.pipe)


@pytest.mark.parametrize("name", ["Wan 2.1", "Qwen-Image with renormalised guidance"])
def test_guidance_in_two_forwards_is_carried_as_an_explicit_schedule_is(name):
    small = build(name)
    calibration = calibrated(small)
    steps = {"num_inference_steps": STEPS - 2}
    expected = explicit(small, calibration, **steps)
    hook = apply_mean_cache(small.pipe, calibration, budget=BUDGET)
    assert torch.equal(small.draw(**steps), expected)
    assert hook.forwards == BUDGET * small.case.calls


def test_another_number_of_steps_and_levels_of_ones_own_just_work():
    small = build("FLUX.1")
    small.pipe.scheduler = scheduler(**DYNAMIC)
    calibration = calibrated(small)
    hook = apply_mean_cache(small.pipe, calibration, budget=BUDGET)
    for changes in ({"num_inference_steps": 7}, {"sigmas": np.linspace(1, 0.2, 8).tolist()}):
        before = hook.forwards
        small.draw(**changes)
        assert hook.forwards - before == BUDGET
        assert hook.schedule.calibration["carried"].keys() == {"grid"}
    before = hook.forwards
    small.draw(num_inference_steps=3)  # fewer than the budget
    assert hook.forwards - before == 3


class Run:
    """A run's conditions, as far as they are to differ."""

    def __init__(self, **found) -> None:
        self.found = found

    def differences(self, wanted):
        return [
            dataclasses.make_dataclass("Difference", ["name", "found"])(name, found)
            for name, found in self.found.items()
            if wanted.get(name) not in (None, found)
        ]


@pytest.fixture
def calibration(torch_velocities) -> Calibration:
    grid = Grid.from_sigmas(np.linspace(1, 0, 13).tolist())
    return Calibration(grid, {"pipeline": "FluxPipeline"}, {"height": 64}).add(
        [trajectory_statistics(torch_velocities(0), grid, "p", 0)]
    )


@pytest.mark.parametrize(("begin", "forwards"), [(0, 6), (4, 4), (6, 3), (9, 2), (11, 1)])
def test_a_start_in_the_middle_takes_its_share_of_the_budget(calibration, begin, forwards):
    schedule = calibration.source(6).schedule_for(calibration.grid, Run(), begin)
    assert schedule.grid.sigmas == calibration.grid.sigmas[begin:]
    assert schedule.nfe == forwards


def test_carrying_to_another_size_is_said_and_strict_refuses_it(calibration, caplog):
    with caplog.at_level(logging.WARNING):
        schedule = calibration.source(6).schedule_for(calibration.grid, Run(height=96), 0)
    assert schedule.calibration["carried"] == {"height": {"from": 64, "to": 96}}
    assert "carried to another setting: height 64 -> 96" in caplog.text
    with pytest.raises(CalibrationError, match="strict allows"):
        calibration.source(6, strict=True).schedule_for(calibration.grid, Run(height=96), 0)


def test_another_pipeline_class_and_a_budget_that_is_none_are_refused(calibration):
    with pytest.raises(ScheduleError, match="is of a FluxPipeline, but a WanPipeline runs"):
        calibration.source(6).schedule_for(calibration.grid, Run(pipeline="WanPipeline"), 0)
    for budget in (None, 0, 2.5, True):
        with pytest.raises(ScheduleError, match="a whole number from 1"):
            calibration.source(budget)
