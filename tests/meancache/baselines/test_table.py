"""Every baseline in the real pipeline: it computes less, stays near, pickles, leaves no trace."""

import pickle
import sys

import pytest
import torch
from diffusers import SeaCacheConfig

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.baselines import (
    Baseline,
    BaselineError,
    budcache,
    calibrated,
    golden_path,
    hicache,
    spectrum,
    sweep,
    table,
    unusable,
)
from meancache.baselines.calibration_data import CalibrationData, roll_out
from meancache.grid import Grid

FULL_STEPS = 50
CURVES: dict[str, list[Baseline]] = {}
for _baseline in sweep():
    CURVES.setdefault(_baseline.method, []).append(_baseline)

each_method = pytest.mark.parametrize("method", CURVES)


def test_the_sweep_has_every_baseline_that_needs_no_calibration():
    assert set(CURVES) >= {
        "euler", "unipc", "dpm-solver++", "first-block-cache", "taylorseer",
        "pyramid-attention-broadcast", "fastercache", "teacache", "seacache",
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
def full(counted) -> tuple[torch.Tensor, int]:
    return counted(num_inference_steps=FULL_STEPS)


@pytest.fixture(scope="module")
def plain(counted) -> tuple[torch.Tensor, int]:
    """A run of 12 steps without a baseline."""
    return counted()


@each_method
def test_the_weakest_setting_is_near_the_full_run_and_the_strongest_computes_less(
    pipe, counted, full, method
):
    reference, most = full
    runs = []
    for baseline in (CURVES[method][0], CURVES[method][-1]):
        with baseline.applied(pipe) as overrides:
            runs.append(counted(**{"num_inference_steps": FULL_STEPS, **overrides}))
    (weakest, cost), (_, least) = runs
    assert 0 < (weakest - reference).norm() / reference.norm() < 0.3
    assert least < cost < 0.95 * most


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
def test_afterwards_the_pipeline_is_as_it_was_bit_for_bit(pipe, latents, plain, method):
    before = state(pipe)
    with CURVES[method][-1].applied(pipe) as overrides:
        changed = latents(**overrides)
        # The same baseline again, on its own state: a second run is as the first.
        assert torch.equal(latents(**overrides), changed)
    assert not torch.equal(changed, plain[0])
    assert state(pipe) == before
    assert torch.equal(latents(), plain[0])


@each_method
def test_a_run_that_failed_halfway_leaves_the_pipeline_as_it_was(pipe, latents, plain, method):
    before = state(pipe)

    def interrupt(_, step, __, ___):
        if step == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt), CURVES[method][-1].applied(pipe) as overrides:
        latents(**overrides, callback_on_step_end=interrupt)
    assert state(pipe) == before
    assert torch.equal(latents(), plain[0])


def test_a_pipeline_with_a_cache_on_it_is_refused(pipe):
    baseline = CURVES["taylorseer"][0]
    with baseline.applied(pipe), pytest.raises(BaselineError, match="disable_cache"):
        baseline.applied(pipe).__enter__()
    assert not pipe.transformer.is_cache_enabled


def test_seacache_is_told_the_step_without_which_diffusers_own_computes_every_step(
    pipe, counted, plain
):
    look = SeaCacheConfig(
        threshold=1e9, raw_vision_callback=lambda _, __, given: [given["hidden_states"][0]]
    )
    pipe.transformer.enable_cache(look)
    try:
        unskipped, cost = counted()
        assert torch.equal(unskipped, plain[0])
        assert cost == plain[1]
    finally:
        pipe.transformer.disable_cache()
    with CURVES["seacache"][-1].applied(pipe):
        assert counted()[1] < 0.8 * plain[1]


def test_without_cache_dit_its_baselines_are_left_out_and_the_table_tells_how_to_get_it(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    assert not [baseline for baseline in sweep() if baseline.method.startswith("dbcache")]
    assert "pip install" in dict(unusable())["dbcache"]


@pytest.fixture(scope="module")
def schedules(pipe, draw) -> dict[int, Schedule]:
    """A schedule of 6 Euler steps on the grid of 12, to start from."""
    draw()
    sigmas = Grid.from_scheduler(pipe.scheduler).sigmas
    edges = [{"start": k, "stop": k + 2, "weights": {k: 1.0}} for k in range(0, 12, 2)]
    return {6: Schedule.from_edges(sigmas, edges)}


CALIBRATED = {
    "dpcache", "l2p", "spectrum", "hicache", "freecache", "paper-forced", "optimal-stepsize",
    "budcache", "refined",
}  # fmt: skip


def test_calibrated_baselines_and_schedules_run_in_the_pipeline(
    pipe, latents, counted, plain, runs, schedules, monkeypatch
):
    # Fewer settings to choose from: what is chosen from is tested in test_forecasts and test_paths.
    monkeypatch.setattr(budcache, "TRIES", 5)
    monkeypatch.setattr(spectrum, "WARM_UPS", (2,))
    monkeypatch.setattr(hicache, "CONTRACTIONS", (0.5,))
    monkeypatch.setattr(golden_path, "GAMMAS", (2.0,))
    before = state(pipe)
    found = calibrated(pipe, runs, schedules)
    assert state(pipe) == before
    assert all(p.requires_grad for p in pipe.transformer.parameters())
    baselines = [each for each in found if isinstance(each, Baseline)]
    assert {baseline.method for baseline in baselines} == {"magcache", "teacache-rescaled"}
    for baseline in (baselines[0], baselines[-1]):
        again = pickle.loads(pickle.dumps(baseline))
        with again.applied(pipe) as overrides:
            assert counted(**overrides)[1] < plain[1]
    solved = {each.method: each for each in found if isinstance(each, Schedule)}
    assert set(solved) == CALIBRATED
    errors = {}
    data = CalibrationData(pipe, runs, schedules)
    for method, schedule in {"euler": schedules[6], **solved}.items():
        assert schedule.nfe <= schedule.budget == 6
        hook = apply_mean_cache(pipe.transformer, schedule)
        try:
            end = latents(seed=0)  # of the first prompt: the first of the calibration runs
        finally:
            remove_mean_cache(pipe.transformer)
        assert hook.forwards == schedule.nfe
        errors[method] = float((end - plain[0]).norm())
        with torch.no_grad():
            batched = roll_out(data.field, data.field.noise, schedule)[0]
        torch.testing.assert_close(batched, end, atol=2e-4, rtol=1e-3)
    assert all(errors[method] < errors["euler"] for method in ("optimal-stepsize", "refined"))
    assert torch.equal(latents(), plain[0])


# --- other packages' baselines ---


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with one baseline, whose module holds the given text."""

    def install(text: str) -> None:
        (tmp_path / "elsewhere.py").write_text(text)
        about = tmp_path / "elsewhere-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[meancache.baselines]\nhalf = elsewhere:half\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "elsewhere", raising=False)

    return install


HALF = """
from meancache.schedule import Edge

def half(data):
    total = data.grid.num_inference_steps
    edges = [Edge(k, k + 2, weights={k: 1.0}) for k in range(0, total, 2)]
    return [data.schedule("half", 6, edges, "elsewhere 1.0", "every second step")]
"""


def test_a_baseline_of_another_package_is_calibrated_with_the_others(
    pipe, runs, schedules, installed, monkeypatch
):
    monkeypatch.setattr(table, "METHODS", ())
    assert calibrated(pipe, runs, schedules) == []
    installed(HALF)
    (found,) = calibrated(pipe, runs, schedules)
    assert (found.method, found.nfe) == ("half", 6)
    assert found.calibration["source"] == "elsewhere 1.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", "cannot be imported .*nothing_of_that_name.*uninstall"),
        ("def half(data): return 1 / 0", "failed on the calibration runs: division by zero"),
        ("def half(data): return ['fast']", "returned a str; return a sequence of Baseline"),
        (
            "from meancache import Schedule\n"
            "def half(data): return [Schedule.from_edges([1.0, 0.0], [dict(start=0, stop=1, "
            "weights={0: 1.0})])]",
            "use `data.schedule`",
        ),
    ],
)
def test_a_baseline_of_another_package_that_fails_is_named(
    pipe, runs, schedules, installed, monkeypatch, text, message
):
    monkeypatch.setattr(table, "METHODS", ())
    installed(text)
    with pytest.raises(BaselineError, match=f"'half'.*{message}"):
        calibrated(pipe, runs, schedules)
