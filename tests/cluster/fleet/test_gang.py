"""A gang answers as one, or is killed and built anew as one; real processes throughout."""

import os
import signal
import subprocess
import sys
import textwrap
from multiprocessing.connection import Connection, wait

import pytest

from cluster.fleet.gang import Gang, GangError, NodeFaultError
from tests.support import ranks
from tests.support.processes import gone


def test_every_rank_gets_every_task_and_rank_0_answers(tmp_path):
    with Gang(ranks.build, 3) as gang:
        built, payload, _ = gang.run(ranks.who, {"prompt": "x"})
        assert (built, payload) == ((0, 3), {"prompt": "x"})
        gang.run(ranks.touch, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rank-0", "rank-1", "rank-2"}


def test_ranks_stay_between_tasks_and_end_with_the_gang():
    with Gang(ranks.build, 2) as gang:
        pids = gang.pids
        assert gang.run(ranks.who, 1)[2] == gang.run(ranks.who, 2)[2] == pids[0]
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (ranks.die_on_rank_1, "rank 1 died with exit code -9"),
        (ranks.fail_on_rank_1, "rank 1 failed: ValueError: latents are wrong"),
        (ranks.stop_on_rank_1, "rank 1 did not answer within 3 s"),
    ],
)
def test_a_rank_that_dies_fails_or_hangs_ends_the_gang_and_the_next_task_rebuilds_it(
    task, sentence
):
    with Gang(ranks.build, 2) as gang:
        before = gang.pids
        with pytest.raises(GangError, match=sentence):
            gang.run(task, None, deadline_s=3)
        assert all(gone(pid) for pid in before)
        assert gang.pids == []
        assert gang.run(ranks.who, None)[0] == (0, 2)
        assert not set(gang.pids) & set(before)


def test_of_several_ranks_in_trouble_the_one_that_died_is_named(monkeypatch):
    def late(pipes, timeout):
        """A leader that had no core until both ranks had come to their end."""
        while sum(isinstance(one, Connection) for one in wait(pipes, timeout)) < 2:
            pass
        return wait(pipes, timeout)

    with Gang(ranks.build, 2) as gang:
        gang.run(ranks.who, None)
        monkeypatch.setattr("cluster.fleet.gang.wait", late)
        with pytest.raises(GangError, match="rank 1 died with exit code -9"):
            gang.run(ranks.fail_beside_a_death, None)


def test_a_rank_that_dies_of_a_full_disk_or_a_file_that_is_gone_blames_the_node():
    with Gang(ranks.build, 1) as gang:
        with pytest.raises(NodeFaultError, match="rank 0 died with exit code -7: a disk or /dev/"):
            gang.run(ranks.read_a_mapped_file_that_is_gone, None)
        assert gang.run(ranks.who, None)[0] == (0, 1)


def test_the_first_task_of_new_ranks_may_take_longer_where_they_say_so_and_no_other():
    with Gang(ranks.Compiling(), 2) as gang:
        for _ in range(2):  # and again of those that replace them
            gang.run(ranks.who, None, deadline_s=0)
            with pytest.raises(GangError, match="rank 1 did not answer within 3 s"):
                gang.run(ranks.stop_on_rank_1, None, deadline_s=3)


@pytest.mark.parametrize("task", [ranks.stop_within_its_answer, ranks.stop_and_answer_nothing])
def test_a_rank_that_stops_within_a_message_holds_nobody(task, monkeypatch):
    monkeypatch.setattr("cluster.fleet.gang.MESSAGE_S", 1.0)
    with Gang(ranks.build, 1) as gang:
        with pytest.raises(GangError, match="rank"):
            gang.run(task, None, deadline_s=2)
        assert gang.run(ranks.who, None)[0] == (0, 1)


def test_a_task_too_large_for_the_pipe_of_a_stopped_rank_holds_nobody(monkeypatch):
    monkeypatch.setattr("cluster.fleet.gang.MESSAGE_S", 1.0)
    with Gang(ranks.build, 1) as gang:
        os.kill(gang.pids[0], signal.SIGSTOP)
        with pytest.raises(GangError, match="died or stopped as it was handed a task"):
            gang.run(ranks.who, "x" * 8_000_000, deadline_s=1)
        assert gang.run(ranks.who, None)[0] == (0, 1)


def test_a_deadline_longer_than_the_kernel_can_wait_is_no_error():
    with Gang(ranks.build, 1) as gang:
        (built, _, _), attempts = gang.run_with_retries(ranks.who, 1, deadline_s=1e9)
    assert (built, attempts) == ((0, 1), 1)


def test_a_rank_killed_between_tasks_is_replaced_before_the_next():
    with Gang(ranks.build, 2) as gang:
        before = gang.pids
        os.kill(before[1], signal.SIGKILL)
        assert gone(before[1])
        assert gang.run(ranks.who, None)[0] == (0, 2)
        assert gone(before[0])
        assert not set(gang.pids) & set(before)


def test_the_process_that_ranks_are_forked_from_may_die_too():
    program = textwrap.dedent(
        """
        import os, signal
        from cluster.fleet.gang import Gang
        from tests.support import ranks
        from tests.support.processes import gone

        with Gang(ranks.build, 2) as gang:
            pid = gang.run(ranks.who, None)[2]
            with open(f"/proc/{pid}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
            assert parent != os.getpid()
            os.kill(parent, signal.SIGKILL)
            assert gone(pid)  # with its parent
            print(gang.run(ranks.who, "again")[1])
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "again\n", done.stderr


def test_a_rank_that_cannot_start_is_reported_and_leaves_no_other(monkeypatch):
    gang = Gang(ranks.build_fails, 2)
    with pytest.raises(GangError, match="rank 1 failed: RuntimeError: no weights here"):
        gang.start()
    assert gang.pids == []


def test_retries_are_counted_and_end(tmp_path):
    with Gang(ranks.build, 1) as gang:
        assert gang.run_with_retries(ranks.who, "x")[1] == 1
        answer, attempts = gang.run_with_retries(ranks.fail_until_third_try, tmp_path)
        assert (answer, attempts) == ("third time lucky", 3)
    with Gang(ranks.build, 2) as gang, pytest.raises(GangError, match="rank 1 died"):
        gang.run_with_retries(ranks.die_on_rank_1, None)


def test_ranks_die_with_a_leader_that_is_killed():
    program = textwrap.dedent(
        """
        import sys
        from cluster.fleet.gang import Gang
        from tests.support import ranks
        if __name__ == "__main__":
            gang = Gang(ranks.build, 2)
            gang.start()
            print(*gang.pids, flush=True)
            sys.stdin.read()
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as leader:
        pids = [int(pid) for pid in leader.stdout.readline().split()]
        assert len(pids) == 2
        leader.kill()
    assert all(gone(pid) for pid in pids)
