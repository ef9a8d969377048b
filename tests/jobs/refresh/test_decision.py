"""Who is promoted: pairs of the same prompt and noise decide, and their standard error."""

import dataclasses
import math

import numpy as np
import pytest

from jobs.evaluate.table import SCHEMA, scoreboard
from jobs.refresh.decision import judge
from meancache import Schedule

GRID = [1.0, 0.75, 0.5, 0.25, 0.0]


def schedule(step: int) -> Schedule:
    edges = [{"start": 0, "stop": step, "span": 1}, {"start": step, "stop": 4, "span": 1}]
    return Schedule.from_edges(GRID, edges)


CANDIDATE, CURRENT = schedule(1), schedule(2)


def table(**psnr: list[float]):
    """An evaluation with so many dB for each pair."""
    ids = {"candidate": CANDIDATE.id, "current": CURRENT.id}
    return scoreboard(
        {
            **dict.fromkeys(SCHEMA.names),
            "method": "fitted",
            "setting": name,
            "source": "",
            "prompt_id": f"p{pair}",
            "prompt": "",
            "schedule_id": ids[name],
            "nfe": 2,
            "seed": pair,
            "psnr": value,
            "ssim": 0.9,
            "seconds": 1.0,
        }
        for name, values in psnr.items()
        for pair, value in enumerate(values)
    )


def test_the_first_candidate_has_nothing_to_beat():
    trial = judge(table(candidate=[30.0, 34.0]), CANDIDATE, None)
    assert trial.is_better
    assert "no current schedule yet" in trial.reason
    assert trial.metrics["psnr"] == 32.0
    assert "gain" not in trial.metrics


def test_pairs_are_compared_one_by_one_so_their_common_spread_does_not_hide_a_gain():
    # From pair to pair 20 dB apart, but the candidate is ahead by half a dB in each.
    current = [20.0, 30.0, 40.0, 50.0]
    gains = [0.4, 0.5, 0.6, 0.5]
    candidate = [a + b for a, b in zip(current, gains, strict=True)]
    trial = judge(table(candidate=candidate, current=current), CANDIDATE, CURRENT)
    assert trial.is_better
    assert trial.gain.mean == pytest.approx(0.5)
    assert trial.gain.standard_error == pytest.approx(np.std(gains, ddof=1) / 2)
    assert trial.metrics["gain"] == trial.gain.mean
    assert "+0.50 ± 0.04 dB on 4 pairs" in trial.reason


@pytest.mark.parametrize(
    "gains", [[0.0, 0.0, 0.0], [-1.0, -1.1, -0.9], [3.0, -2.0, 0.0]], ids=["same", "worse", "noise"]
)
def test_no_more_than_the_standard_error_ahead_is_not_better(gains):
    candidate = [30.0 + gain for gain in gains]
    trial = judge(table(candidate=candidate, current=[30.0] * 3), CANDIDATE, CURRENT)
    assert not trial.is_better
    assert "not better than the current one by more than the standard error" in trial.reason


def test_videos_equal_to_the_full_run_are_numbers_too():
    rows = table(candidate=[math.inf, 40.0], current=[math.inf, 39.0])
    trial = judge(rows, CANDIDATE, CURRENT)
    assert trial.gain.mean == pytest.approx(0.5)
    assert all(map(math.isfinite, trial.metrics.values()))


def test_a_schedule_is_not_better_than_itself():
    same = dataclasses.replace(CANDIDATE)
    assert not judge(table(candidate=[30.0, 31.0]), CANDIDATE, same).is_better
