"""A small round of chaos; `python -m tests.chaos` is the long one."""

import random
from collections import Counter

import pytest

from tests.chaos.blows import SECOND_DRIVER, Blow, Trap, all_traps, blows
from tests.chaos.round import Round, outcome, stage, summary


@pytest.mark.timeout(600)
def test_no_row_is_lost_doubled_or_damaged_whatever_is_killed(tmp_path):
    with stage() as (nodes, proxy, storm):
        round_ = Round(
            nodes,
            tmp_path,
            proxy,
            storm,
            seed=1,
            items=9,
            gangs="2",
            gang_size=1,
            blows=[
                Blow("rank killed", 1),
                Blow(SECOND_DRIVER, 2),
                Blow("leader killed", 3),
                Blow("raylet killed", 4),
                Blow("driver killed", 6),
            ],
            traps=[Trap("video", "kill after"), Trap("part", "kill after")],
        )
        round_.run()
        found = outcome(round_)
    said = summary(round_.tally, [found])
    assert (found.rows, found.lost, found.duplicate, found.strayed) == (15, 0, 0, 0), said
    assert found.corrupt == [], said
    assert found.orphans == [], said
    # How far the plan comes before the job is done depends on the machine.
    assert round_.tally["kill after video"] == round_.tally["kill after part"] == 1, said
    assert sum(round_.tally.values()) >= 5, said


def test_every_step_of_the_protocol_has_its_traps():
    assert len(set(all_traps())) == 18


def test_a_plan_follows_from_its_seed():
    kinds = {"rank killed": 3, "driver killed": 2}
    plan = blows(random.Random(5), 20, kinds)
    assert plan == blows(random.Random(5), 20, kinds)
    assert Counter(blow.kind for blow in plan) == kinds
    assert [blow.after for blow in plan] == sorted(blow.after for blow in plan)
