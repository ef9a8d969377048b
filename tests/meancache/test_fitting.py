"""Fitting on the embedded pipeline, against a plain loop written from the formulas."""

import math

import numpy as np
import pytest
import torch

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.fitting import ORDER, RIDGE, Fitter, FittingError
from meancache.grid import Grid
from meancache.quality import psnr
from meancache.schedule import Edge

STEPS = 12
PROMPTS = [
    "a red circle moving left on a dark background",
    "a blue square moving up on a light background",
]
PATHS = [(0, 4, 7, 10), (0, 4, 8, 11)]


@pytest.fixture(scope="module")
def grid(pipe) -> Grid:
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 0, STEPS + 1)[:-1])
    return Grid.from_scheduler(pipe.scheduler)


@pytest.fixture(scope="module")
def calls(pipe) -> list[int]:
    """Grows by one with every forward that the transformer computes."""
    counted: list[int] = []
    # It projects its output once a forward.
    handle = pipe.transformer.proj_out.register_forward_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


def make_run(draw, seed: int, prompt: str):
    def run(*, decode: bool = False, **overrides):
        changes = {"num_inference_steps": STEPS, **overrides}
        if not decode:
            draw(seed, prompt, **changes)
            return None
        return np.rint(draw(seed, prompt, output_type="np", **changes) * 255).astype(np.uint8)

    return run


@pytest.fixture(scope="module")
def runs(draw):
    return [make_run(draw, seed, prompt) for seed, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def fitter(pipe, grid, runs) -> Fitter:
    return Fitter(pipe.transformer, grid, runs)


@pytest.fixture(scope="module")
def fields(pipe, draw):
    """(noise, v(z, sigma)) of each prompt, by calling the bare transformer."""
    found = []
    for seed, prompt in enumerate(PROMPTS):
        captured: dict = {}
        handle = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs, into=captured: into.update(kwargs) if not into else None,
            with_kwargs=True,
        )
        draw(seed, prompt, num_inference_steps=1)
        handle.remove()

        @torch.no_grad()
        def velocity(z, sigma, arguments=captured):
            timestep = torch.full((1,), sigma * 1000)
            changed = {**arguments, "hidden_states": z, "timestep": timestep}
            return pipe.transformer(**{**changed, "return_dict": False})[0]

        found.append((captured["hidden_states"], velocity))
    return found


def plain_references(grid: Grid, fields):
    """The latents of each full run at every noise level."""
    sigmas = grid.sigmas
    references = []
    for noise, velocity in fields:
        z, states = noise, [noise]
        for k in range(STEPS):
            z = z + (sigmas[k + 1] - sigmas[k]) * velocity(z, sigmas[k])
            states.append(z)
        references.append(states)
    return references


def plain_fit(grid: Grid, fields, path):
    """Section 4, step 3 of the method, as a loop over steps and trajectories."""
    sigmas = grid.sigmas
    references = plain_references(grid, fields)
    latents = [noise for noise, _ in fields]
    histories: list[list[torch.Tensor]] = [[] for _ in fields]
    fitted = []
    for k, t in enumerate(path):
        s = [*path, STEPS][k + 1]
        rows, targets = [], []
        for z, history, states, (_, velocity) in zip(
            latents, histories, references, fields, strict=True
        ):
            history.insert(0, velocity(z, sigmas[t]))
            del history[ORDER:]
            rows.append(torch.stack([v.flatten() for v in history]).double())
            wanted = (states[s] - z) / (sigmas[s] - sigmas[t])
            targets.append((wanted - history[0]).flatten().double())
        A, y = torch.cat(rows, dim=1), torch.cat(targets)
        normal = A @ A.T
        ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(A), dtype=torch.float64)
        c = torch.linalg.solve(normal + ridge, A @ y)
        c[0] += 1
        fitted.append(c.tolist())
        latents = [
            z
            + (sigmas[s] - sigmas[t]) * sum(w * v for w, v in zip(c.tolist(), history, strict=True))
            for z, history in zip(latents, histories, strict=True)
        ]
    errors = [
        float((z - states[-1]).square().mean())
        for z, states in zip(latents, references, strict=True)
    ]
    return fitted, errors


def test_the_weights_are_those_of_the_loop_in_the_method(fitter, grid, fields):
    fits = fitter.fit(PATHS)
    for path in PATHS:
        fitted, errors = plain_fit(grid, fields, path)
        fit = fits[path]
        assert [edge.start for edge in fit.edges] == list(path)
        for edge, weights in zip(fit.edges, fitted, strict=True):
            newest_first = sorted(edge.weights, reverse=True)
            assert [edge.weights[step] for step in newest_first] == pytest.approx(weights, abs=2e-3)
        assert fit.errors == pytest.approx(errors, rel=2e-2)


def test_runs_that_are_not_fitted_on_are_judged_by_weights_that_have_not_seen_them(fitter):
    both = fitter.fit(PATHS, fitted_on=1)
    alone = fitter.fit(PATHS, count=1)
    for path in PATHS:
        assert both[path].edges == alone[path].edges
        assert both[path].errors[0] == alone[path].errors[0]
        assert len(both[path].errors) == 2


def test_a_run_left_out_follows_the_weights_that_its_absence_gives(fitter, grid, fields, runs):
    path, sigmas = PATHS[0], grid.sigmas
    before = fitter.forwards
    fit, scores = fitter.fit_held_out(path)
    assert fitter.forwards - before == len(runs) * (2 * len(path) - 1)
    assert fit == fitter.fit([path])[path]
    # The first of the two, by hand: its weights suit where the fit on both has led the second.
    noise, velocity = fields[1]
    reference, z = plain_references(grid, fields[1:])[0], noise
    history: list[torch.Tensor] = []
    edges = []
    for edge in fit.edges:
        length = sigmas[edge.stop] - sigmas[edge.start]
        history = [velocity(z, sigmas[edge.start]), *history][:ORDER]
        A = torch.stack([v.flatten() for v in history]).double()
        missing = ((reference[edge.stop] - z) / length - history[0]).flatten().double()
        ridge = RIDGE * (A @ A.T).diagonal().mean() * torch.eye(len(A), dtype=torch.float64)
        weights = torch.linalg.solve(A @ A.T + ridge, A @ missing)
        weights[0] += 1
        steps = sorted(edge.weights, reverse=True)
        left_out = dict(zip(steps, weights.tolist(), strict=True))
        edges.append(Edge(edge.start, edge.stop, weights=left_out))
        common = [edge.weights[step] for step in steps]
        z = z + length * sum(w * v for w, v in zip(common, history, strict=True))
    assert fitter.fidelity(Schedule.from_edges(sigmas, edges), slice(1)) == pytest.approx(
        scores[:1], abs=0.2
    )
    assert scores[0] < fitter.fit_and_render(path)[1][0]


def test_trajectories_of_one_prompt_are_left_out_together(pipe, grid, runs):
    twins = Fitter(pipe.transformer, grid, [runs[0], runs[0], runs[1]], prompts=["a", "a", "b"])
    _, scores = twins.fit_held_out(PATHS[0])
    alone = Fitter(pipe.transformer, grid, [runs[0], runs[1]])
    # With its twin in the fit, the first would come out closer than without.
    assert scores[0] == scores[1]
    assert scores[0] == pytest.approx(alone.fit_held_out(PATHS[0])[1][0], abs=1.5)
    with pytest.raises(FittingError, match="one prompt"):
        Fitter(pipe.transformer, grid, runs, prompts=["a", "a"]).fit_held_out(PATHS[0])
    with pytest.raises(FittingError, match="2 trajectories come with 1 prompts"):
        Fitter(pipe.transformer, grid, runs, prompts=["a"])


def test_what_paths_begin_with_alike_is_run_once(fitter, calls):
    before, counted = fitter.forwards, len(calls)
    fitter.fit(PATHS)  # (0, 4) is common to both, then two steps each
    assert fitter.forwards - before == len(calls) - counted == 2 * (2 + 2 + 2)
    before = fitter.forwards
    fitter.fit(PATHS, count=1)
    assert fitter.forwards - before == 6


def test_the_videos_of_a_fit_are_those_that_its_schedule_draws(pipe, fitter, grid, runs):
    before = fitter.forwards
    fit, scores = fitter.fit_and_render(PATHS[0])
    assert fitter.forwards - before == len(runs) * len(PATHS[0])  # drawing cost no more
    schedule = Schedule(grid, fit.edges, method="fitted", budget=len(fit.edges))
    assert fitter.fidelity(schedule) == pytest.approx(scores, abs=0.1)
    apply_mean_cache(pipe.transformer, schedule)
    try:
        video = runs[1](decode=True)
    finally:
        remove_mean_cache(pipe.transformer)
    assert psnr(video, fitter.references[1].frames) == pytest.approx(scores[1], abs=0.1)


def test_fitted_weights_come_closer_than_holding_the_velocity(fitter, grid):
    path = PATHS[0]
    held = Schedule.from_edges(
        grid.sigmas,
        [
            {"start": t, "stop": s, "weights": {t: 1.0}}
            for t, s in zip(path, (*path[1:], STEPS), strict=True)
        ],
    )
    _, scores = fitter.fit_and_render(path)
    assert np.mean(scores) > np.mean(fitter.fidelity(held)) + 3


def test_all_steps_are_the_reference_itself(fitter):
    fit, scores = fitter.fit_and_render(tuple(range(STEPS)))
    assert max(fit.errors) < 1e-9
    assert min(scores) > 60


def test_a_finer_reference_is_another_target_from_the_same_noise(pipe, grid, runs, fitter):
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 0, 3 * STEPS + 1)[:-1])
    fine = Fitter(pipe.transformer, grid, runs[:1], Grid.from_scheduler(pipe.scheduler))
    assert fine.forwards == 3 * STEPS
    assert len(fine.references[0].path) == STEPS + 1
    # All steps of the coarse grid, fitted to the finer flow, end nearer to it than Euler's do.
    target = fine.references[0].path[-1]
    euler = float((fitter.references[0].path[-1] - target).square().mean())
    assert 0 < fine.fit([tuple(range(STEPS))])[tuple(range(STEPS))].errors[0] < euler


def test_the_transformer_is_as_it_was(pipe, draw, fitter):
    before = draw(5, PROMPTS[0])
    fitter.fit(PATHS[:1], count=1)
    assert np.array_equal(draw(5, PROMPTS[0]), before)


def test_a_rank_that_does_not_decode_fits_the_same_and_scores_nothing(pipe, grid, runs, fitter):
    def latents_only(*, decode: bool = False, **overrides):
        runs[0](**overrides)
        return None

    other = Fitter(pipe.transformer, grid, [latents_only])
    fit, scores = other.fit_and_render(PATHS[0])
    assert math.isnan(scores[0])
    assert fit == Fitter(pipe.transformer, grid, runs[:1]).fit_and_render(PATHS[0])[0]


def test_what_cannot_be_fitted_is_refused(pipe, grid, runs):
    with pytest.raises(FittingError, match="no trajectory"):
        Fitter(pipe.transformer, grid, [])
    coarse = Grid.from_sigmas(np.linspace(1, 0, 19).tolist())
    with pytest.raises(FittingError, match="18 must be a multiple of the 12 steps"):
        Fitter(pipe.transformer, grid, runs, coarse)
    unshifted = Grid.from_sigmas(np.linspace(1, 0, 25).tolist())
    with pytest.raises(FittingError, match="pass through its noise levels"):
        Fitter(pipe.transformer, grid, runs, unshifted)
