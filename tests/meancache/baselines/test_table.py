"""Every baseline in the real pipeline: it computes less, stays near, pickles, leaves no trace."""

import pickle
import sys

import pytest
import torch
from diffusers import SeaCacheConfig

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.baselines import Baseline, BaselineError, calibrated, sweep, unusable
from meancache.grid import Grid

FULL_STEPS = 50
CURVES: dict[str, list[Baseline]] = {}
for _baseline in sweep():
    CURVES.setdefault(_baseline.method, []).append(_baseline)

each_method = pytest.mark.parametrize("method", CURVES)


def test_the_sweep_has_every_baseline_that_needs_no_calibration():
    assert set(CURVES) >= {
        "euler", "unipc", "dpm-solver++", "first-block-cache", "taylorseer",
        "pyramid-attention-broadcast", "fastercache", "teacache",
    }  # fmt: skip
    assert all(5 <= len(curve) <= 8 for curve in CURVES.values())


def test_settings_are_told_apart_and_sources_are_named():
    named = [(baseline.method, baseline.setting) for baseline in sweep()]
    assert len(set(named)) == len(named)
    for baseline in sweep():
        assert baseline.source.startswith(("diffusers 0.", "cache-dit 1.", "written from arXiv:"))


def test_every_baseline_pickles():
    for baseline in sweep():
        assert pickle.loads(pickle.dumps(baseline)) == baseline


@pytest.fixture(scope="module")
def full(latents, flops) -> tuple[torch.Tensor, int]:
    return latents(num_inference_steps=FULL_STEPS), flops(num_inference_steps=FULL_STEPS)


@each_method
def test_the_weakest_setting_is_near_the_full_run_and_the_strongest_computes_less(
    pipe, latents, flops, full, method
):
    reference, most = full
    cost = []
    for baseline in (CURVES[method][0], CURVES[method][-1]):
        with baseline.applied(pipe) as overrides:
            changes = {"num_inference_steps": FULL_STEPS, **overrides}
            if not cost:
                error = (latents(**changes) - reference).norm() / reference.norm()
            cost.append(flops(**changes))
    assert 0 < error < 0.3
    assert cost[1] < cost[0] < 0.95 * most


def state(pipe) -> tuple:
    hooks = {
        name: tuple(module._diffusers_hook.hooks)
        for name, module in pipe.transformer.named_modules()
        if hasattr(module, "_diffusers_hook")
    }
    return (
        pipe.scheduler,
        dict(pipe.scheduler.config),
        dict(pipe.config),
        type(pipe).__call__,
        pipe.transformer.is_cache_enabled,
        set(vars(pipe)),
        # In order: diffusers' caches take the first child for the first block.
        [name for name, _ in pipe.transformer.named_modules()],
        set(vars(pipe.transformer)) - {"_diffusers_hook", "forward", "_cache_config"},
        {name: names for name, names in hooks.items() if names},
    )


@each_method
def test_afterwards_the_pipeline_is_as_it_was_bit_for_bit(pipe, latents, method):
    plain, before = latents(), state(pipe)
    with CURVES[method][-1].applied(pipe) as overrides:
        changed = latents(**overrides)
        # The same baseline again, on its own state: a second run is as the first.
        assert torch.equal(latents(**overrides), changed)
    assert not torch.equal(changed, plain)
    assert state(pipe) == before
    assert torch.equal(latents(), plain)


@each_method
def test_a_run_that_failed_halfway_leaves_the_pipeline_as_it_was(pipe, latents, method):
    plain, before = latents(), state(pipe)

    def interrupt(_, step, __, ___):
        if step == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt), CURVES[method][-1].applied(pipe) as overrides:
        latents(**overrides, callback_on_step_end=interrupt)
    assert state(pipe) == before
    assert torch.equal(latents(), plain)


def test_a_pipeline_with_a_cache_on_it_is_refused(pipe):
    baseline = CURVES["taylorseer"][0]
    with baseline.applied(pipe), pytest.raises(BaselineError, match="disable_cache"):
        baseline.applied(pipe).__enter__()
    assert not pipe.transformer.is_cache_enabled


def test_seacache_skips_nothing_on_this_pipeline_as_the_table_says(pipe, latents, flops):
    assert "step index" in dict(unusable())["seacache"]
    plain, most = latents(), flops()
    look = SeaCacheConfig(
        threshold=1e9, raw_vision_callback=lambda _, __, given: [given["hidden_states"][0]]
    )
    pipe.transformer.enable_cache(look)
    try:
        assert torch.equal(latents(), plain)
        assert flops() == most
    finally:
        pipe.transformer.disable_cache()


def test_without_cache_dit_its_baselines_are_left_out_and_the_table_tells_how_to_get_it(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    assert not [baseline for baseline in sweep() if baseline.method.startswith("dbcache")]
    assert "pip install" in dict(unusable())["dbcache"]


@pytest.fixture(scope="module")
def schedules(pipe, draw) -> dict[int, Schedule]:
    """A schedule of 4 Euler steps on the grid of 12, to start from."""
    draw()
    edges = [(0, 3), (3, 6), (6, 9), (9, 12)]
    return {
        4: Schedule.from_edges(
            Grid.from_scheduler(pipe.scheduler).sigmas,
            [{"start": start, "stop": stop, "weights": {start: 1.0}} for start, stop in edges],
        )
    }


def test_calibrated_baselines_and_schedules_run_in_the_pipeline(
    pipe, latents, flops, runs, schedules
):
    plain, most, before = latents(), flops(), state(pipe)
    found = calibrated(pipe, runs, schedules)
    assert state(pipe) == before
    assert all(p.requires_grad for p in pipe.transformer.parameters())
    baselines = [each for each in found if isinstance(each, Baseline)]
    assert {baseline.method for baseline in baselines} == {"magcache", "teacache-rescaled"}
    for baseline in (baselines[0], baselines[-1]):
        again = pickle.loads(pickle.dumps(baseline))
        with again.applied(pipe) as overrides:
            assert flops(**overrides) < most
    errors = {}
    for schedule in [schedules[4], *(each for each in found if isinstance(each, Schedule))]:
        assert schedule.nfe == 4
        apply_mean_cache(pipe.transformer, schedule)
        try:
            errors[schedule.method] = float((latents(seed=0) - plain).norm())
        finally:
            remove_mean_cache(pipe.transformer)
    # Seed 0 of the first prompt is one of the calibration runs.
    assert set(errors) == {"fitted", "optimal-stepsize", "refined"}
    assert errors["optimal-stepsize"] < errors["fitted"]
    assert torch.equal(latents(), plain)


def test_runs_on_another_grid_than_the_schedules_are_refused(pipe, runs, schedules):
    short = [lambda run=run: run(num_inference_steps=5) for run in runs]
    with pytest.raises(BaselineError, match="one grid"):
        calibrated(pipe, short, schedules)


def test_schedules_without_weights_are_refused(pipe, runs, schedules):
    spans = Schedule.from_edges(
        schedules[4].grid.sigmas, [{"start": k, "stop": k + 1, "span": 1} for k in range(12)]
    )
    with pytest.raises(BaselineError, match="fitted"):
        calibrated(pipe, runs, {12: spans})
