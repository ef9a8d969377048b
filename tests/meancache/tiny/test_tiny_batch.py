"""Batches of the embedded model against its pipeline and against `meancache.fitting`."""

from functools import partial

import numpy as np
import pytest
import torch

from meancache import tiny
from meancache.baselines.calibration_data import roll_out
from meancache.fitting import Fitter
from meancache.quality import psnr
from meancache.schedule import Schedule
from meancache.tiny.captions import CALIBRATION
from meancache.tiny.training import batch
from meancache.tiny.training.batch import Batch, make_batch

STEPS, SEED, PATH = 12, 1000, (0, 4, 7, 10)
CAPTIONS = CALIBRATION[:3]


@pytest.fixture(scope="module")
def runs(pipe) -> Batch:
    with torch.no_grad():
        return make_batch(pipe, CAPTIONS, SEED, STEPS)


@pytest.fixture(scope="module")
def fitter(pipe, runs) -> Fitter:
    def run(caption, seed, *, decode: bool = False, **overrides):
        arguments = {**tiny.DEFAULTS, "num_inference_steps": STEPS, **overrides}
        kind = "np" if decode else "latent"
        generator = torch.Generator().manual_seed(seed)
        frames = pipe(caption.text, generator=generator, output_type=kind, **arguments).frames[0]
        return np.rint(np.asarray(frames) * 255).astype(np.uint8) if decode else None

    each = [partial(run, caption, SEED + i) for i, caption in enumerate(CAPTIONS)]
    return Fitter(pipe.transformer, runs.field.grid, each)


def test_its_full_runs_are_the_pipelines(pipe, runs):
    for i, caption in enumerate(CAPTIONS):
        own = batch.run(pipe, caption, SEED + i, STEPS)
        torch.testing.assert_close(runs.reference[-1, i], own.squeeze(0), atol=2e-5, rtol=1e-4)


def test_its_fits_are_those_of_the_pipeline(runs, fitter):
    for fitted_on, counts in ((None, None), (2, torch.tensor([1.0, 1.0, 0.0]))):
        with torch.no_grad():
            edges, ends = batch.fit(runs, PATH, counts)
        expected = fitter.fit([PATH], fitted_on=fitted_on)[PATH]
        for edge, other in zip(edges, expected.edges, strict=True):
            assert edge.weights == pytest.approx(other.weights, abs=2e-3)
        assert batch.errors(runs, ends) == pytest.approx(expected.errors, rel=2e-2)


def test_fits_that_share_a_beginning_are_those_of_the_pipeline_with_their_responses(runs, fitter):
    paths = [PATH, (0, 4, 8, 11)]
    with torch.no_grad():
        found = {path: rest for path, *rest in batch.fits(runs, paths, 2)}
        alone = batch.fit(runs, PATH, torch.tensor([1.0, 1.0, 0.0]))[1]
    torch.testing.assert_close(found[PATH][0], alone)
    for path, expected in fitter.fit(paths, fitted_on=2).items():
        ends, responses = found[path]
        assert batch.errors(runs, ends) == pytest.approx(expected.errors, rel=2e-2)
        assert set(responses) == set(expected.responses) == set(path[1:])
        for step, response in responses.items():
            np.testing.assert_allclose(response, expected.responses[step], rtol=0.05, atol=0.05)


def test_the_first_runs_of_a_batch_are_a_batch(pipe, runs):
    with torch.no_grad():
        part = runs.first(pipe, 2, SEED)
        torch.testing.assert_close(part.field.reference(), part.reference, atol=2e-5, rtol=1e-4)
    assert len(part) == 2


def test_where_a_fit_ends_is_where_its_schedule_ends(runs):
    with torch.no_grad():
        edges, ends = batch.fit(runs, PATH)
        again = roll_out(
            runs.field, runs.reference[0], Schedule.from_edges(runs.field.grid.sigmas, edges)
        )
    torch.testing.assert_close(again, ends, atol=1e-3, rtol=1e-3)


def test_runs_left_out_of_its_fits_are_those_of_the_pipeline(pipe, runs, fitter):
    with torch.no_grad():
        edges, left_out = batch.fit_held_out(runs, PATH)
        videos = batch.decode(pipe, left_out)
    fit, scores = fitter.fit_held_out(PATH)
    for edge, other in zip(edges, fit.edges, strict=True):
        assert edge.weights == pytest.approx(other.weights, abs=2e-3)
    frames = [reference.frames for reference in fitter.references]
    found = [psnr(video, full) for video, full in zip(videos, frames, strict=True)]
    assert found == pytest.approx(scores, abs=0.2)
