"""Ideas for the worst videos, at a size that says nothing of quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from meancache.schedule import Edge, Schedule
from meancache.tiny.captions import CALIBRATION
from meancache.tiny.training import worst_videos
from meancache.tiny.training.batch import Batch, make_batch

PATH = (0, 3, 6, 9, 11)


@pytest.fixture(scope="module")
def runs(pipe) -> Batch:
    with torch.no_grad():
        return make_batch(pipe, CALIBRATION[:4], 1000, 12)


@torch.no_grad()
def test_a_velocity_on_a_line_is_foreseen_and_a_bend_is_not():
    sigmas = (1.0, 0.8, 0.5, 0.3, 0.0)

    class Field:
        def __call__(self, latents, sigma):
            bend = torch.tensor([0.0, 1.0]) * (sigma == 0.3)
            return ((1 + sigma) + bend).reshape(2, 1)

    schedule = Schedule.from_edges(sigmas, [Edge(k, k + 1, weights={k: 1.0}) for k in range(4)])
    two = Batch(CALIBRATION[:2], Field(), torch.zeros(5, 2, 1))
    found = worst_videos.unforeseen(two, schedule)
    np.testing.assert_allclose(found[:, 0], 0.0, atol=1e-6)
    np.testing.assert_allclose(found[:, 1], [0, 0, 0, 1 / 2.3], atol=1e-6)


@torch.no_grad()
def test_a_soft_worst_case_lowers_the_largest_error(runs):
    usual = worst_videos.errors(runs, worst_videos.fitted(runs, PATH))
    softer = worst_videos.errors(runs, worst_videos.soft_worst_case(runs, PATH, 2.0))
    assert softer.max() < usual.max()
    assert softer.min() > usual.min()


@torch.no_grad()
def test_half_of_the_runs_get_a_forward_more_after_the_step_where_they_look(runs):
    usual = worst_videos.fitted(runs, PATH)
    rule = worst_videos.best_rule(runs, usual)
    assert rule.longer[: rule.at + 1] == PATH[: rule.at + 1]
    assert len(rule.longer) == len(PATH) + 1
    assert set(PATH) < set(rule.longer)
    assert (worst_videos.unforeseen(runs, usual)[rule.at] >= rule.above).sum() == 2
