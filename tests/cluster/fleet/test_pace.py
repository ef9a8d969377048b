"""A deadline follows the slowest of the last tasks that were no smaller."""

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.pace import FLOOR_S, PATIENCE, REMEMBERED, TASK_DEADLINE_S, Pace

tasks = st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 1e5)), min_size=1, max_size=50)


def paced(observed) -> Pace:
    pace = Pace()
    for size, seconds in observed:
        pace.observe(size, seconds)
    return pace


def test_where_nothing_is_known_the_deadline_is_that_of_any_machine():
    assert not Pace().known
    assert Pace().deadline_s(1.0) == TASK_DEADLINE_S


@given(tasks)
def test_every_task_remembered_would_have_been_in_time(observed):
    pace = paced(observed)
    assert pace.known
    for size, seconds in observed[-REMEMBERED:]:
        assert pace.deadline_s(size) >= max(FLOOR_S, PATIENCE * seconds)


@given(tasks)
def test_of_tasks_larger_than_all_that_were_seen_nothing_is_concluded(observed):
    larger = max(size for size, _ in observed) * 2
    assert paced(observed).deadline_s(larger) == TASK_DEADLINE_S


def test_small_tasks_have_the_floor_and_an_old_outlier_is_forgotten():
    pace = paced([(1.0, 1000.0)] + [(1.0, 0.1)] * REMEMBERED)
    assert pace.deadline_s(1.0) == FLOOR_S
    assert paced([(1.0, 100.0)]).deadline_s(1.0) == PATIENCE * 100.0


def test_threads_may_share_a_pace():
    pace = Pace()

    def use(_: int) -> float:
        pace.observe(1.0, 2.0)
        return pace.deadline_s(1.0)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(use, range(20_000))) == {FLOOR_S}
