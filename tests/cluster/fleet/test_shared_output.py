"""Driver and leader see the same output, or it is said that they do not."""

import pickle

import pytest

from cluster.fleet.shared_output import SharedOutput
from cluster.store import StoreError, open_store


@pytest.fixture(params=["folder", "s3"])
def root(request, tmp_path) -> str:
    """A root of either kind."""
    return (
        str(tmp_path / "out") if request.param == "folder" else request.getfixturevalue("s3_root")
    )


def test_a_leader_that_shares_the_output_proves_it_and_leaves_nothing(root):
    store = open_store(root)
    with SharedOutput(store).offered() as shared:
        leader = pickle.loads(pickle.dumps(shared))
        shared.check(leader.answer())
        shared.check(leader.answer())  # another gang's
    assert list(store.list()) == []


def test_a_leader_on_another_disk_is_refused(tmp_path):
    with SharedOutput(open_store(str(tmp_path / "driver"))).offered() as shared:
        leader = SharedOutput(open_store(str(tmp_path / "own")), shared.token)
        with pytest.raises(StoreError, match="is not there, so the output is not the driver's"):
            leader.answer()


def test_a_leader_whose_writes_do_not_arrive_is_refused(tmp_path):
    """A mount that shows the driver's files and keeps new ones to itself, as an overlay does."""
    with SharedOutput(open_store(str(tmp_path / "driver"))).offered() as shared:
        own = open_store(str(tmp_path / "overlay"))
        with SharedOutput(own, shared.token).offered():
            answer = SharedOutput(own, shared.token).answer()
        with pytest.raises(StoreError, match="does not reach the driver"):
            shared.check(answer)


def test_two_drivers_of_one_root_do_not_meet(root):
    store = open_store(root)
    with SharedOutput(store).offered() as one, SharedOutput(store).offered() as other:
        one.check(one.answer())
        other.check(other.answer())
