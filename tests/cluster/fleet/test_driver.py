"""Gangs over a real Ray cluster: every item once, whatever the number of gangs."""

import errno
import multiprocessing
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import ray

from cluster.fleet import driver as fleet
from cluster.fleet import supervisor, waiting
from cluster.fleet.draining import Stopped
from cluster.fleet.gang import Gang, GangError, GangStartError, GangTaskError
from cluster.fleet.gangs import parse_count
from cluster.fleet.staged_gang import StagedGang
from cluster.store import StoreError
from cluster.store.local import LocalStore
from tests.support import ranks
from tests.support.processes import gone


def identify(gang: Gang, item: int) -> tuple[int, int, int]:
    """The item, the leader that did it, and the size of its gang."""
    return item, os.getpid(), gang.run(ranks.who, None)[0][1]


def meet(gang: Gang, item: tuple[Path, str]) -> int:
    """Waits at one end of a pipe until another leader is at the other end."""
    pipe, mode = item
    pipe.open(mode).close()
    return os.getpid()


def die_once(gang: Gang, item) -> int:
    """Kills its leader the first time that item 3 is tried."""
    number, folder = item
    mark = folder / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


_busy: set[int] = set()


def die_in_company(gang: StagedGang, item) -> tuple[int, int]:
    """Items 0 and 1 meet on their leader, and 1 kills it; later how many are in flight."""
    number, folder = item
    _busy.add(number)
    mark = folder / "died"
    if number < 2 and not mark.exists():
        (folder / "pipe").open("rw"[number]).close()
        if number == 1:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "never").open()  # nobody opens the other end
    most = len(_busy)
    gang.gang.run(ranks.who, None)
    most = max(most, len(_busy))
    _busy.discard(number)
    return number, most


def die(gang: Gang, item) -> None:
    """Kills its leader every time."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(gang: Gang, item: int) -> None:
    """An item's work that raises."""
    raise ValueError("a bug")


def terminate_driver(gang: Gang, item: tuple[int, int]) -> int:
    """Sends the driver a SIGTERM from inside the first item."""
    number, driver = item
    if number == 0:
        os.kill(driver, signal.SIGTERM)
    return number


def build_dies(rank: int, world_size: int, init_method: str) -> None:
    """A rank whose leader is killed while it starts."""
    leader = multiprocessing.parent_process()
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL)


@pytest.mark.usefixtures("shared_cluster")
def test_every_item_is_done_once_by_gangs_of_the_asked_size():
    results = list(fleet.run(identify, range(9), fleet.Gangs(ranks.build, 2, 2, 2)))
    assert sorted(item for item, _, _ in results) == list(range(9))
    assert {size for _, _, size in results} == {2}
    assert 1 <= len({leader for _, leader, _ in results}) <= 2


@pytest.mark.usefixtures("shared_cluster")
def test_a_fleet_grows_while_items_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    items = [(tmp_path / "pipe", "r"), (tmp_path / "pipe", "w")]
    gangs: list[int] = []
    grown = fleet.Gangs(ranks.build, 1, 1, 2)
    leaders = list(fleet.run(meet, items, grown, staffed=gangs.append))
    assert len(set(leaders)) == 2
    assert (gangs[0], max(gangs)) == (0, 2)  # and whoever waits is told of it


@pytest.mark.usefixtures("shared_cluster")
def test_a_leader_with_encoders_has_several_items_in_flight(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    items = [(tmp_path / "pipe", "r"), (tmp_path / "pipe", "w")]
    gangs = fleet.Gangs(ranks.build, 1, 1, 1, ranks.build)
    (leader,) = set(fleet.run(meet, items, gangs))
    assert leader != os.getpid()


@pytest.mark.usefixtures("shared_cluster")
def test_what_a_leader_died_with_comes_back_alone(tmp_path):
    """Two items meet, and one kills their leader: none is blamed, and each is alone then."""
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "never")
    items = [(number, tmp_path) for number in range(6)]
    told = []
    gangs = fleet.Gangs(ranks.build, 1, 1, 1, ranks.build)
    results = fleet.run(die_in_company, items, gangs, lambda item, how: told.append(item[0]))
    answers = dict(results)
    assert sorted(answers) == list(range(6))
    assert told == []
    assert (answers[0], answers[1]) == (1, 1)


@pytest.mark.usefixtures("shared_cluster")
def test_a_leader_that_is_killed_loses_no_item_and_its_death_is_told(tmp_path):
    items = [(number, tmp_path) for number in range(6)]
    told = []
    results = fleet.run(
        die_once, items, fleet.Gangs(ranks.build, 1, 1, 1), lambda *death: told.append(death)
    )
    assert sorted(results) == list(range(6))
    ((item, how),) = told
    assert item == items[3]
    assert how.startswith("the gang's leader died: The actor ")
    assert len(how) < 400


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cluster")
def test_an_item_that_kills_every_leader_ends_and_is_told_each_time(monkeypatch):
    monkeypatch.setattr("cluster.fleet.items.MAX_ATTEMPTS", 1)  # each takes a leader's start
    told = []
    results = fleet.run(
        die, ["poison"], fleet.Gangs(ranks.build, 1, 1, 1), lambda item, how: told.append(item)
    )
    with pytest.raises(GangTaskError, match="an item's leader died every time"):
        list(results)
    assert told == ["poison"] * 2


@pytest.mark.usefixtures("shared_cluster")
def test_work_that_raises_ends_the_job():
    with pytest.raises(ValueError, match="a bug"):
        list(fleet.run(refuse, [1], fleet.Gangs(ranks.build, 1, 1, 1)))


@pytest.mark.usefixtures("shared_cluster")
def test_ranks_that_cannot_start_end_the_job_with_their_reason():
    with pytest.raises(GangError, match="rank 0 failed: RuntimeError: no weights here"):
        list(fleet.run(identify, [1], fleet.Gangs(ranks.build_fails, 1, 1, 1)))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cluster")
def test_leaders_that_die_before_their_ranks_are_ready_end_the_job(monkeypatch):
    monkeypatch.setattr("cluster.fleet.nodes.MAX_ATTEMPTS", 2)
    with pytest.raises(GangStartError, match="leader died before its ranks were ready"):
        list(fleet.run(identify, [1], fleet.Gangs(build_dies, 1, 1, 1)))


def build_until(broken: Path, rank: int, world_size: int, init_method: str) -> tuple[int, int]:
    """A rank that starts until a file says that its machine has broken."""
    if broken.exists():
        raise RuntimeError("no GPU here")
    return rank, world_size


def break_machine(gang: Gang, item: tuple[int, Path]) -> int:
    """The second item finds its ranks gone, and the machine broken."""
    number, broken = item
    if number == 1:
        gang.close()
        broken.touch()
    gang.run(ranks.who, None)
    return number


@pytest.mark.usefixtures("shared_cluster")
def test_a_gang_that_does_not_start_again_is_tried_elsewhere_and_blames_no_item(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("cluster.fleet.nodes.MAX_ATTEMPTS", 2)
    told = []
    gangs = fleet.Gangs(partial(build_until, tmp_path / "broken"), 1, 1, 1)
    items = [(number, tmp_path / "broken") for number in (0, 1)]
    results = fleet.run(break_machine, items, gangs, lambda *death: told.append(death))
    assert next(results) == 0
    with pytest.raises(GangStartError, match="no GPU here"):
        next(results)
    assert told == []


@pytest.mark.usefixtures("shared_cluster")
def test_sigterm_hands_out_nothing_more_and_yields_what_is_in_flight(monkeypatch):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "300")
    items = [(number, os.getpid()) for number in range(50)]
    done: list[int] = []
    results = fleet.run(terminate_driver, items, fleet.Gangs(ranks.build, 1, 1, 1))
    with pytest.raises(Stopped):
        done.extend(results)
    # While the signal was on its way the leader may have been handed an item or two more.
    assert done == list(range(len(done)))
    assert 1 <= len(done) < 10


class NoCredentials(LocalStore):
    """A store that workers cannot open, as where only the driver has credentials."""

    def get(self, key: str) -> bytes:
        raise StoreError("no credentials were found")


@pytest.mark.usefixtures("shared_cluster")
def test_what_nodes_lack_is_said_before_a_rank_starts(tmp_path):
    gangs = fleet.Gangs(ranks.build_fails, 1, 1, 1)
    with pytest.raises(fleet.FleetError, match=r"can hold a gang; .*no credentials were found"):
        list(fleet.run(identify, [1], gangs, store=NoCredentials(tmp_path)))


def freeze_once(gang: Gang, item: tuple[int, Path]) -> int:
    """Stops its leader the first time that item 1 is tried."""
    number, folder = item
    if number == 1 and not (folder / "frozen").exists():
        (folder / "frozen").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()  # the stop may reach this thread last
    return number


@pytest.mark.usefixtures("shared_cluster")
def test_a_leader_that_freezes_is_killed_and_loses_no_item(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "BEAT_S", 0.2)
    monkeypatch.setattr(supervisor, "FROZEN_S", 10.0)
    items = [(number, tmp_path) for number in range(3)]
    told = []
    gangs = fleet.Gangs(ranks.build, 1, 1, 1)
    results = fleet.run(freeze_once, items, gangs, lambda item, how: told.append((item[0], how)))
    assert sorted(results) == [0, 1, 2]
    ((item, how),) = told
    assert item == 1
    assert "leader died: it did not answer for" in how
    assert gone(int((tmp_path / "frozen").read_text()))


def fill_disk(gang: Gang, item: int) -> None:
    """Work that meets a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("shared_cluster")
def test_a_fault_of_the_only_node_ends_the_job_with_it():
    with pytest.raises(OSError, match="No space left on device"):
        list(fleet.run(fill_disk, [1], fleet.Gangs(ranks.build, 1, 1, 1)))


def test_no_items_need_no_cluster():
    assert list(fleet.run(identify, [], fleet.Gangs(ranks.build, 1))) == []


@pytest.mark.parametrize(("text", "count"), [("4", (4, 4)), ("2:8", (2, 8))])
def test_counts_of_gangs(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["0", "3:2", "two", "1:2:3", "-1", ""])
def test_what_is_no_count_of_gangs_is_refused(text):
    with pytest.raises(fleet.FleetError, match="must be A or A:B"):
        parse_count(text)


@ray.remote(num_gpus=1)
class Holder:
    """What holds the cluster's GPU."""

    def held(self) -> bool:
        return True


@pytest.fixture(scope="module")
def gpu_cluster():
    """A cluster of one node with a GPU, as Ray counts; the last tests of this file share it."""
    ray.shutdown()
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def holder(gpu_cluster):
    """Another job, which holds the GPU."""
    actor = Holder.remote()
    assert ray.get(actor.held.remote())
    yield actor
    ray.kill(actor)


@pytest.mark.usefixtures("gpu_cluster")
def test_a_gang_fits_where_a_node_has_as_many_gpus():
    assert fleet.fits(1)
    assert not fleet.fits(2)
    with pytest.raises(fleet.FleetError, match=r"needs 2 GPUs on one node, but .* has 1: use a s"):
        list(fleet.run(identify, [1], fleet.Gangs(ranks.build, 2)))


@pytest.mark.usefixtures("holder")
def test_waiting_for_room_says_what_for_and_ends_when_it_should(monkeypatch):
    monkeypatch.setattr(waiting, "SAID_AFTER_S", 0.0)
    said: list[str] = []
    gangs = fleet.Gangs(ranks.build, 1, wait_s=1.5)
    with pytest.raises(fleet.FleetError, match=r"minutes of --wait.* 0 of 1 GPUs are free"):
        list(fleet.run(identify, [1], gangs, say=said.append))
    (sentence,) = said
    assert "waiting, not working: since " in sentence
    assert "a gang needs 1 GPU on one node, and 0 of 1 GPUs are free; other jobs hold" in sentence


def test_a_gang_goes_to_work_when_there_is_room(monkeypatch, holder):
    monkeypatch.setattr(waiting, "SAID_AFTER_S", 0.0)
    # Told that it waits, the other job ends.
    results = fleet.run(
        identify, [1], fleet.Gangs(ranks.build, 1), say=lambda sentence: ray.kill(holder)
    )
    assert [item for item, _, _ in results] == [1]


@pytest.mark.usefixtures("holder")
def test_cpus_are_used_where_they_are_asked_for_though_there_are_gpus():
    gangs = fleet.Gangs(ranks.build, 1, 1, 1, on_gpus=False)
    assert len(list(fleet.run(identify, [1], gangs))) == 1
