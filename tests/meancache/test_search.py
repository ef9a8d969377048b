"""The search of computed steps, on errors that are known for every path."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meancache.errors import SolverError
from meancache.propagation import Propagation
from meancache.search import (
    REACH,
    Tried,
    decibels,
    moves,
    promising,
    rollout_forwards,
    score,
    search,
)

TOTAL = 12
BEST = (0, 3, 7, 10)
START = (0, 2, 4, 6)
VELOCITIES = np.random.default_rng(0).normal(size=(6, TOTAL, 30)).cumsum(axis=1)


class Valley:
    """Errors that grow with the distance from BEST; notes what was tried."""

    def __init__(self, unseen_best=BEST) -> None:
        self.unseen_best = unseen_best
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, paths):
        self.asked += paths
        return {
            path: Tried([*self._errors(path, BEST), *self._errors(path, self.unseen_best, 0.2)])
            for path in paths
        }

    @staticmethod
    def _errors(path, best, steep=0.1) -> list[float]:
        far = sum(abs(a - b) for a, b in zip(path, best, strict=True))
        return [10 ** (steep * far) * spread for spread in (1e-4, 2e-4, 1e-3)]


def propagation(fitted_on: int = 3) -> Propagation:
    """Of velocities that have nothing to do with the errors."""
    grams = VELOCITIES @ VELOCITIES.swapaxes(1, 2) / VELOCITIES.shape[2]
    return Propagation(grams, np.linspace(1, 0, TOTAL + 1), fitted_on, order=3, ridge=1e-6)


def test_it_climbs_to_the_best_path_however_poor_the_predictions_are():
    valley = Valley()
    found = search(valley, propagation(), [START, (0, 1, 2, 3)], forwards=2000)
    assert found.steps == BEST
    assert found.first == START
    assert found.score == max(score(valley([path])[path].errors, 3) for path in set(valley.asked))
    assert found.score > found.first_score


def test_what_only_the_runs_fitted_on_like_is_not_taken():
    elsewhere = Valley(unseen_best=START)
    found = search(elsewhere, propagation(), [START], forwards=1000)
    # Every move towards the one best is a move away from the other, which weighs more.
    assert found.steps == found.first == START
    assert found.score == found.first_score


def test_no_path_is_tried_twice_and_the_search_ends_when_all_nearby_were():
    valley = Valley()
    found = search(valley, propagation(), [START], forwards=10**6)
    assert len(valley.asked) == len(set(valley.asked)) == found.tried
    assert set(moves(BEST, TOTAL)) <= set(valley.asked)


def test_predictions_that_are_right_are_followed():
    known = propagation()
    tried = {START: Tried(list(known.errors(START)))}
    first = promising(known, START, tried)[0]
    assert score(known.errors(first), 3) > score(known.errors(START), 3)


@pytest.mark.parametrize("forwards", [0, 24, 200, 400])
def test_it_keeps_to_its_forwards(forwards):
    valley = Valley()
    found = search(valley, propagation(), [START], forwards)
    assert found.forwards <= max(forwards, 6 * len(START))
    assert found.score >= found.first_score
    if forwards < 100:
        assert valley.asked == [START]


@given(st.sets(st.integers(1, TOTAL - 1), max_size=6))
def test_moves_are_all_paths_that_differ_in_one_step_without_passing_another(inner):
    steps = (0, *sorted(inner))
    expected = {
        path
        for path in itertools.combinations(range(TOTAL), len(steps))
        if path[0] == 0 and sum(a != b for a, b in zip(path, steps, strict=True)) == 1
        and max(abs(a - b) for a, b in zip(path, steps, strict=True)) <= REACH
    }  # fmt: skip
    found = moves(steps, TOTAL)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_beginnings_are_counted_once():
    assert rollout_forwards([(0, 2, 5), (0, 2, 6), (0, 3, 5)]) == 6


def test_the_score_is_the_mean_rms_of_both_parts():
    errors = 10.0 ** -np.arange(1, 6)
    assert decibels(errors) == pytest.approx([10, 20, 30, 40, 50])
    fitted = -20 * np.log10(np.mean(np.sqrt(errors[:3])))
    unseen = -20 * np.log10(np.mean(np.sqrt(errors[3:])))
    assert score(errors, 3) == pytest.approx((fitted + unseen) / 2)
    assert score([1e-2] * 4, 2) == pytest.approx(20)


def test_a_search_that_cannot_judge_is_refused():
    with pytest.raises(SolverError, match="at least one"):
        search(Valley(), propagation(), [], 100)
    with pytest.raises(SolverError, match="6 of 6 trajectories has none to judge by"):
        search(Valley(), propagation(6), [START], 100)
