"""Where gangs may be: what the nodes have, and what an autoscaler may bring."""

import pytest
import ray

from cluster.fleet import driver as fleet
from cluster.fleet.placement import Placement, autoscaled, placement
from tests.cluster.fleet.test_driver import identify
from tests.support import ranks
from tests.support.autoscaler import scaled_cluster


@pytest.fixture
def from_zero(tmp_path, monkeypatch):
    """A cluster without a GPU, whose autoscaler starts nodes with one."""
    ray.shutdown()
    kind = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "max_workers": 2}
    with scaled_cluster(tmp_path, {"gpu": kind}) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("from_zero")
def test_a_cluster_that_scales_from_zero_gpus_is_asked_for_gpus_and_starts_them():
    gangs = fleet.Gangs(ranks.build, 1, 1, 1)
    results = list(fleet.run(identify, [1, 2], gangs))
    assert sorted(item for item, _, _ in results) == [1, 2]
    assert sum(node["Resources"].get("GPU", 0) for node in ray.nodes()) == 1


@pytest.mark.usefixtures("shared_cluster")
def test_a_cluster_without_gpus_or_an_autoscaler_of_its_own_is_one_of_cpus():
    fleet.connect()
    assert not autoscaled()
    assert placement(2) == Placement(2, on_gpus=False)


@pytest.mark.usefixtures("shared_cluster")
def test_gpus_that_no_node_has_and_nobody_starts_are_refused():
    fleet.connect()
    with pytest.raises(fleet.FleetError, match="needs 1 GPU on one node, but the largest node has"):
        placement(1, on_gpus=True)


@pytest.mark.usefixtures("shared_cluster")
def test_a_gang_of_more_ranks_than_any_node_has_cores_is_refused():
    fleet.connect()
    with pytest.raises(fleet.FleetError, match=r"1000 is more than the .* cores of the largest"):
        placement(1000)


def test_a_leader_avoids_the_nodes_that_are_left_out():
    options = Placement(4, on_gpus=True).options({"b", "a"})
    assert options["num_gpus"] == 4
    assert options["label_selector"] == {"ray.io/node-id": "!in(a,b)"}
    assert "label_selector" not in Placement(4, on_gpus=True).options(())
