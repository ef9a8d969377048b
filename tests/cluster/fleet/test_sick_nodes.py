"""A node that cannot hold a gang is named and left out, and the job goes on without it.

Real raylets, each in a mount namespace of its own.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.fleet import driver as fleet
from cluster.fleet.errors import FleetError
from cluster.fleet.gang import Gang
from cluster.store import open_store
from tests.support import nodes, ranks

# Four raylets of their own: Ray gives each 30 s to start, which a busy machine does not keep.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        nodes.why_not() is not None, reason=f"no mount namespaces here: {nodes.why_not()}"
    ),
]


def identify(gang: Gang, item: tuple[int, Path]) -> tuple[int, str]:
    """The item, and the node that did it, when the pipe is opened at its other end."""
    number, pipe = item
    pipe.open().close()
    gang.run(ranks.who, None)
    return number, ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of this machine over which nodes mount their own."""
    root = tmp_path_factory.mktemp("nodes")
    names = ("output", "lonely", "temporary")
    for name in names:
        (root / name).mkdir()
    return {name: root / name for name in names}


@pytest.fixture(scope="module")
def sick_cluster(folders):
    """A healthy node and three sick ones; on none of them is 'lonely' what the driver sees."""
    ray.shutdown()
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lonely = nodes.own_disk(folders["lonely"])
    temporary = f"export TMPDIR={folders['temporary']}"
    sick = {
        "own disk": [nodes.own_disk(folders["output"])],
        "full disk": [nodes.small_disk(folders["temporary"]), temporary],
        "not installed": [nodes.own_disk(place) for place in nodes.places_of("cluster")],
        "healthy": [],
    }
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(cluster.shutdown)
        for name, mounts in sick.items():
            # With a GPU each, as Ray counts, so that every node gets one gang.
            options = ["--num-gpus=1", f"--labels=sick={name.replace(' ', '-')}"]
            root = stack.enter_context(nodes.node(cluster.address, [lonely, *mounts], options))
            if name == "full disk":
                nodes.fill(root, folders["temporary"])
        patch.setenv("RAY_ADDRESS", cluster.address)
        fleet.connect()
        stack.callback(ray.shutdown)
        yield {one["Labels"].get("sick"): one["NodeID"] for one in ray.nodes()}


def is_of_a_node(sentence: str) -> bool:
    """On a busy machine gangs wait, which is said too."""
    return not sentence.startswith("waiting, not working")


def test_sick_nodes_are_left_out_each_with_its_reason_and_the_job_is_done(
    sick_cluster, folders, tmp_path
):
    os.mkfifo(tmp_path / "pipe")
    said: list[str] = []

    def say(sentence: str) -> None:
        if is_of_a_node(sentence):
            said.append(sentence)
            if len(said) == 3:
                os.open(tmp_path / "pipe", os.O_RDWR)  # and stays open

    store = open_store(str(folders["output"]))
    gangs = fleet.Gangs(ranks.build, 1, 4, 4)
    items = [(number, tmp_path / "pipe") for number in range(12)]
    results = list(fleet.run(identify, items, gangs, store=store, say=say))
    assert sorted(item for item, _ in results) == list(range(12))
    assert {node for _, node in results} == {sick_cluster["healthy"]}
    reasons = {
        "own-disk": "the output is not the driver's but a disk of the node's own: give s3://",
        "full-disk": "its temporary folder cannot be used: [Errno 28] No space left on device",
        "not-installed": "ModuleNotFoundError: No module named 'cluster.",
    }
    for name, reason in reasons.items():
        (sentence,) = [one for one in said if sick_cluster[name][:8] in one]
        assert reason in sentence
        assert "is left out from here on" in sentence
    assert len(said) == 3
    assert os.listdir(folders["output"]) == []  # nothing is left of the proofs


@pytest.mark.usefixtures("sick_cluster")
def test_an_output_that_no_node_shares_ends_the_job_before_a_rank_starts(folders):
    said: list[str] = []
    store = open_store(str(folders["lonely"]))
    results = fleet.run(
        identify, [1], fleet.Gangs(ranks.build_fails, 1, 4, 4), store=store, say=said.append
    )
    with pytest.raises(FleetError, match="no node of the cluster can hold a gang"):
        list(results)
    assert len(list(filter(is_of_a_node, said))) == 3


def deliver(gang: Gang, item: tuple[int, str, Path]) -> tuple[int, str]:
    """Writes a temporary file and the item's object; a healthy node waits for the pipe first."""
    number, root, pipe = item
    if os.environ.get("SICK") != "fills":
        pipe.open().close()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(2**19))
    open_store(root).put_new(f"videos/{number}", b"mp4")
    return number, ray.get_runtime_context().get_node_id()


def test_a_disk_that_is_read_only_and_one_that_fills_are_their_nodes_and_items_move(tmp_path):
    output, temporary, pipe = (tmp_path / name for name in ("output", "temporary", "pipe"))
    output.mkdir()
    temporary.mkdir()
    os.mkfifo(pipe)
    said: list[str] = []

    def say(sentence: str) -> None:
        if is_of_a_node(sentence):
            said.append(sentence)
            if len(said) == 2:
                os.open(pipe, os.O_RDWR)  # and stays open: the healthy node goes to work

    ray.shutdown()
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    sick = {
        "read-only": [nodes.read_only(output)],
        "fills": [nodes.small_disk(temporary), f"export TMPDIR={temporary} SICK=fills"],
        "healthy": [],
    }
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(cluster.shutdown)
        roots = {
            name: stack.enter_context(
                nodes.node(cluster.address, mounts, ["--num-gpus=1", f"--labels=sick={name}"])
            )
            for name, mounts in sick.items()
        }
        patch.setenv("RAY_ADDRESS", cluster.address)
        fleet.connect()
        stack.callback(ray.shutdown)
        ids = {one["Labels"].get("sick"): one["NodeID"] for one in ray.nodes()}
        items = [(number, str(output), pipe) for number in range(12)]
        results = []
        store, gangs = open_store(str(output)), fleet.Gangs(ranks.build, 1, 3, 3)
        for number, node in fleet.run(deliver, items, gangs, store=store, say=say):
            results.append((number, node))
            if len(results) == 1:  # of the only node that does not wait
                nodes.fill(roots["fills"], temporary)
    assert sorted(number for number, _ in results) == list(range(12))
    assert results[0][1] == ids["fills"]
    assert {node for _, node in results} == {ids["fills"], ids["healthy"]}
    reasons = {"read-only": "Read-only file system", "fills": "No space left on device"}
    for name, reason in reasons.items():
        (sentence,) = [one for one in said if ids[name][:8] in one]
        assert reason in sentence
        assert "is left out from here on, and the others go on" in sentence
    assert sorted(os.listdir(output)) == ["videos"]
    assert len(os.listdir(output / "videos")) == 12
