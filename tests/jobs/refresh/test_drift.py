"""Drift: a change of the costs is told from the spread that trajectories have anyway."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.refresh.drift import LEAST_COST, drift, log_costs
from meancache.calibration import Calibration
from meancache.grid import Grid
from meancache.statistics import Statistics, edge_count, edge_list

STEPS = 12
GRID = Grid.from_sigmas(np.linspace(1.0, 0.0, STEPS + 1).tolist())
SPREAD = 0.3  # of the log of a cost, from trajectory to trajectory


def run(seed: int, trajectories: int = 8, factors: dict[int, float] | None = None):
    """A graph of random trajectories whose costs of single steps are multiplied by `factors`."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(trajectories):
        l1 = np.exp(random.normal(0.0, SPREAD, edge_count(STEPS)))
        for place, (start, stop, span) in enumerate(edge_list(STEPS)):
            if (stop, span) == (start + 2, 1):
                l1[place] *= (factors or {}).get(start, 1.0)
        found.append(Statistics("p", "a prompt", 1000 * seed + number, 10, np.eye(STEPS), l1))
    return Calibration(GRID).add(found)


def test_a_run_like_the_others_is_not_flagged():
    flagged = [
        drift(run(seed), [run(1000 * seed + n) for n in range(1, 6)]).moved
        for seed in range(1, 101)
    ]
    assert sum(map(bool, flagged)) <= 2  # one in 1000 is expected


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_step_whose_cost_changed_beyond_the_spread_is_flagged_and_no_other(factor):
    found = drift(run(1, factors={4: factor}), [run(n) for n in range(2, 7)])
    assert found.moved == [4]
    assert "drift: 1 of 11 steps" in str(found)
    assert (found.runs, found.trajectories) == (5, 40)


def test_a_change_within_the_spread_is_not_flagged():
    assert drift(run(1, factors={4: 1.1}), [run(n) for n in range(2, 7)]).moved == []


def test_the_more_is_known_the_smaller_a_change_is_seen():
    factors = {4: 1.8}
    assert drift(run(1, factors=factors), [run(2, 3)]).moved == []
    assert drift(run(1, factors=factors), [run(n) for n in range(2, 32)]).moved == [4]


def test_without_a_spread_nothing_is_said():
    assert drift(run(1), []) is None
    assert drift(run(1), [run(2, trajectories=1)]) is None


def test_means_are_geometric_and_in_the_units_of_the_costs():
    found = drift(run(1), [run(2)])
    np.testing.assert_allclose(found.latest, np.exp(log_costs(run(1)).mean(axis=0)))
    np.testing.assert_allclose(found.usual**2, found.low * found.high)


def test_another_setting_is_said():
    said = str(drift(run(1), [run(2)], ["revision is 'a' there and 'b' here"]))
    assert "1 earlier run of another setting (revision is 'a' there and 'b' here)" in said


def test_a_cost_of_nothing_has_a_logarithm():
    graph = run(1)
    first, *others = graph.trajectories.values()
    still = replace(first, l1=np.zeros_like(first.l1))
    assert (log_costs(Calibration(GRID).add([still, *others])) >= np.log(LEAST_COST)).all()
