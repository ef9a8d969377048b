"""The ranks of a node are forks of one process, and die with their leader all the same."""

import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from cluster.fleet import forkserver
from tests.support.processes import gone

NEEDS = ("tests.support.ranks",)
LEADER = textwrap.dedent(
    """
    import os, sys
    from cluster.fleet import forkserver
    from cluster.fleet.gang import Gang
    from tests.support import ranks

    os.nice(int(os.environ.get("NICENESS", 0)))
    forkserver.join({name!r}, {needs!r})
    with Gang(ranks.build, 2) as gang:
        print(*gang.run(ranks.forebears, None), *gang.pids, flush=True)
        for line in sys.stdin:
            print(eval(line), flush=True)
    """
)


class Leader:
    """A process that leads a gang of two, and does what it is told."""

    def __init__(self, name: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LEADER.format(name=name, needs=NEEDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )
        self.fork, self.nodes, *self.ranks = map(int, self.process.stdout.readline().split())

    def ask(self, line: str) -> str:
        """What an expression is there."""
        self.tell(line)
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        """Lets it compute an expression."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@contextmanager
def leader(name: str, **environment: str) -> Iterator[Leader]:
    """A leader, which is killed at the end."""
    one = Leader(name, **environment)
    with one.process:
        yield one
        one.process.kill()


@pytest.fixture
def name() -> str:
    """The name of a job that nobody else has."""
    return secrets.token_hex(8)


def test_leaders_of_a_job_have_forks_of_one_process_which_ends_with_the_job(name, monkeypatch):
    monkeypatch.setattr(forkserver, "own_name", lambda: name)
    monkeypatch.setattr(forkserver, "_kept", {})
    forkserver.keep(NEEDS)
    (job,) = forkserver._kept.values()
    with leader(name) as first:
        pass
    assert all(gone(pid) for pid in first.ranks)
    with leader(name, OF_THIS_LEADER="its own", NICENESS="3") as second:
        assert second.nodes == first.nodes
        assert second.fork != first.fork
        assert "cluster.fleet.forkserver" in " ".join(psutil.Process(first.nodes).cmdline())
        # Ray's workers are nice, and so are their children.
        assert psutil.Process(second.ranks[0]).nice() == psutil.Process(first.nodes).nice() + 3
        assert second.ask("gang.run(ranks.environment, 'OF_THIS_LEADER')") == "its own"
        with forkserver.connected(name, NEEDS) as connection:  # what is no request is no matter
            connection.sendall(b"GET / HTTP/1.1")
        with leader(name, HF_HUB_OFFLINE="1") as other:  # its libraries read that when imported
            assert other.nodes == other.process.pid
        job.close()
        assert second.ask("gang.run(ranks.who, 'still there')[1]") == "still there"
        second.process.kill()
        assert "OF_THIS_LEADER is its own" in second.process.stderr.read()
    assert gone(first.nodes)


def test_ranks_that_are_at_work_die_with_a_leader_that_is_killed(name):
    with leader(name) as one:
        one.tell("gang.run(ranks.sleep, 600.0)")
        one.process.kill()
        assert all(gone(pid) for pid in (*one.ranks, one.fork, one.nodes))


@pytest.mark.parametrize("lost", ["fork", "nodes"])
def test_a_gang_is_rebuilt_where_what_it_was_forked_from_is_killed(name, lost):
    with leader(name) as one:
        for pid in {getattr(one, lost), one.fork}:
            os.kill(pid, signal.SIGKILL)
        assert all(gone(pid) for pid in one.ranks)
        assert int(one.ask("gang.run(ranks.forebears, None)[0]")) != one.fork


def test_what_a_job_entrusts_is_killed_when_the_job_is(name):
    program = textwrap.dedent(
        f"""
        import subprocess, sys
        from cluster.fleet import forkserver
        forkserver.own_name = lambda: {name!r}
        forkserver.keep({NEEDS!r})
        left = subprocess.Popen(["sleep", "600"])
        forkserver.entrust([left.pid])
        print(left.pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as job:
        left = int(job.stdout.readline())
        with leader(name):  # until then everything is imported
            job.kill()
            assert gone(left)
