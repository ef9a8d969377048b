"""Which nodes are left out, and when that ends the job."""

import pytest

from cluster.fleet.errors import FleetError
from cluster.fleet.gang import MAX_ATTEMPTS, GangStartError
from cluster.fleet.nodes import Nodes

FAULT = FleetError("its disk is full")
NO_START = GangStartError("rank 0 failed: no weights here")


class Rooms:
    """A cluster of some nodes, each with room for a gang."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes

    def gangs_by_node(self) -> dict[str, int]:
        return dict.fromkeys(self.nodes, 1)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What people were told; names are ids, as there is no cluster."""
    monkeypatch.setattr("cluster.fleet.placement.node_name", lambda node: node)
    return []


def test_a_node_at_fault_is_left_out_at_once_and_told_once(said):
    nodes = Nodes(Rooms("a", "b"), said.append)
    nodes.at_fault("a", FAULT)
    nodes.at_fault("a", FAULT)
    assert nodes.excluded == {"a"}
    assert said == ["node a is left out from here on, and the others go on: its disk is full"]


def test_the_last_node_at_fault_ends_the_job_with_its_reason(said):
    nodes = Nodes(Rooms("a", "b"), said.append)
    nodes.at_fault("a", FAULT)
    with pytest.raises(FleetError, match="no node of the cluster can hold a gang; b: its disk is"):
        nodes.at_fault("b", FAULT)


def test_where_nothing_ever_started_each_node_is_tried_once(said):
    nodes = Nodes(Rooms("a", "b"), said.append)
    nodes.failed_start("a", NO_START, died=False)
    assert nodes.excluded == {"a"}
    with pytest.raises(GangStartError, match="no weights here"):
        nodes.failed_start("b", NO_START, died=False)


def test_once_a_gang_has_started_a_node_is_tried_again_until_it_fails_in_a_row(said):
    nodes = Nodes(Rooms("a", "b"), said.append)
    nodes.works("b")
    for _ in range(MAX_ATTEMPTS - 1):
        nodes.failed_start("a", NO_START, died=False)
    nodes.works("a")
    for _ in range(MAX_ATTEMPTS - 1):
        nodes.failed_start("a", NO_START, died=False)
    assert not nodes.excluded
    nodes.failed_start("a", NO_START, died=False)
    assert nodes.excluded == {"a"}


def test_leaders_that_are_killed_while_they_start_count_and_no_more(said):
    nodes = Nodes(Rooms("a", "b"), said.append)
    for _ in range(MAX_ATTEMPTS - 1):
        nodes.failed_start("a", NO_START, died=True)
    assert not nodes.excluded


def test_leaders_that_die_before_they_are_placed_end_the_job_unless_others_start(said):
    nodes = Nodes(Rooms("a"), said.append)
    for _ in range(MAX_ATTEMPTS):
        nodes.failed_start("", NO_START, died=True)
        nodes.works("a")
    for _ in range(MAX_ATTEMPTS - 1):
        nodes.failed_start("", NO_START, died=True)
    with pytest.raises(GangStartError):
        nodes.failed_start("", NO_START, died=True)
    assert not nodes.excluded
