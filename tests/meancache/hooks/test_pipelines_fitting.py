"""Fitting where a pipeline makes something of its transformer's output before it integrates it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.fitting import Fitter
from meancache.grid import Grid
from tests.support.small_pipelines import STEPS, build

PATH = (0, 1, 3, 5, 8)


def runs_of(small, latents):
    """Calibration runs that put their final latents into the list, and decode nothing."""

    def run_from(seed):
        def run(*, decode: bool = False, **overrides):
            latents.append(small.draw(seed, **overrides))

        return run

    return [run_from(seed) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("FLUX.1 with true guidance", 1e-3),
        ("Z-Image", 0.2),  # renormalised: the sum over a jump is not quite the fit's own
        ("Wan 2.2", 0.2),  # the guidance changes between the two transformers
        ("Qwen-Image with renormalised guidance", 0.2),
    ],
)
def test_weights_are_fitted_to_the_guided_velocity_on_the_states_of_the_run(name, tolerance):
    small, latents = build(name), []
    plain = [small.draw(seed) for seed in (0, 1)]
    grid = Grid.from_scheduler(small.pipe.scheduler)
    fitter = Fitter(small.pipe, grid, runs_of(small, latents))
    assert fitter.forwards == 2 * STEPS * small.case.calls
    assert all(torch.equal(*pair) for pair in zip(latents, plain, strict=True))
    before = fitter.forwards
    fit = fitter.fit([PATH])[PATH]
    assert fitter.forwards - before == 2 * len(PATH) * small.case.calls
    errors = {}
    held = [
        {"start": start, "stop": stop, "weights": {start: 1.0}}
        for start, stop in pairwise((*PATH, STEPS))
    ]
    for kind, edges in (("fitted", fit.edges), ("held", held)):
        apply_mean_cache(small.pipe, Schedule.from_edges(grid.sigmas, edges))
        errors[kind] = [
            float((small.draw(seed) - latent).square().mean())
            for seed, latent in zip((0, 1), plain, strict=True)
        ]
        remove_mean_cache(small.pipe)
    # What the fit says of itself is what its schedule does.
    assert errors["fitted"] == pytest.approx(fit.errors, rel=tolerance)
    assert np.mean(errors["fitted"]) < np.mean(errors["held"])
