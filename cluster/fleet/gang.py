"""N ranks as one unit: start, feed, watch, kill, rebuild.

A gang's leader is the process that holds the `Gang`; its ranks are child processes, as under
torchrun. All ranks get every task, because a collective needs them all; rank 0's answer counts.
A rank that died, hangs or failed leaves the others in a collective that never ends, so the only
remedy is the same for all: kill every rank and start anew. Knows nothing of what the ranks do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any

from cluster.fleet.forkserver import RANK_ENVIRONMENT
from cluster.fleet.pace import TASK_DEADLINE_S, Pace
from cluster.fleet.rank_process import Answer, serve
from meancache.errors import InputError

# Loading tens of gigabytes of weights from a cold disk takes a while.
START_DEADLINE_S = 1800.0
# The kernel counts the milliseconds of a wait in 31 bits.
MOST_DEADLINE_S = 20 * 24 * 3600.0
# For the last message itself, beyond the deadline of the work.
MESSAGE_S = 10.0
MAX_ATTEMPTS = 3

BuildRank = Callable[[int, int, str], Any]
"""Called on each rank. Where it has an attribute `needs`, a tuple of names of modules, they are
imported once for all ranks of a node: torch and diffusers take seconds. Where it has `warm_up_s`,
the first task of new ranks may take so much longer: they compile, say."""
Task = Callable[[Any, Any], Any]


class GangError(RuntimeError):
    """A rank died, failed or did not answer in time; the gang's ranks have been killed."""


class GangTaskError(GangError):
    """It happened in a task, or between two: perhaps the item's own fault."""


class GangStartError(GangError):
    """The ranks do not start: the fault of the machine or the model, never of an item."""


class GangRefusedError(GangStartError, InputError):
    """A rank refused the job before it loaded anything: no other gang of the kind can run it."""


class NodeFaultError(GangError):
    """A rank met a fault of its node, such as a full disk: no fault of the item."""


class TryAgainError(Exception):
    """What is done with a gang failed, and may be tried again, better on another gang.

    A gang that fails so again and again is replaced, as the fault may be its own.
    """


class Gang:
    """Ranks that work on one task at a time, together.

    Args:
        build_rank: called on each rank as (rank, world_size, init_method); its result is handed
            to every task. Must pickle.
        world_size: how many ranks; each sees the GPUs that this process sees.

    Use it as a context manager, or call `close`. Ranks die with the leader, whatever ends it.
    `pace` is for what hands out tasks: it outlives the ranks.
    """

    def __init__(self, build_rank: BuildRank, world_size: int) -> None:
        self.world_size = world_size
        self.pace = Pace()
        self._build_rank = build_rank
        self._ranks: list[ForkServerProcess] = []
        self._pipes: list[Connection] = []
        self._rendezvous: int | None = None  # descriptor of the file where the ranks meet
        self._starting = False  # launched, and not yet heard of
        self._new = True  # nothing done since
        self._turn = threading.RLock()

    def __enter__(self) -> Gang:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks, by rank; empty while the gang is down."""
        return [rank.pid for rank in self._ranks if rank.pid is not None]

    def launch(self) -> None:
        """Starts the ranks where they do not run; `start` waits for them to be ready.

        Raises:
            NodeFaultError: the node has no room for processes, or for the sockets that they need.
        """
        if self._ranks and (self._starting or self._all_there()):
            return
        self.close()
        try:
            self._fork()
        except OSError as error:
            self.close()
            raise NodeFaultError(f"the gang's processes cannot be started: {error}") from error
        self._starting = True

    def _fork(self) -> None:
        # Ranks are forks of a process that has nothing but imports, and no thread or GPU.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(getattr(self._build_rank, "needs", ())))
        os.environ.update(RANK_ENVIRONMENT)
        # A file, as a port probed and then bound may be taken in between; of no folder, so that
        # nothing is left of it, whatever ends this process.
        self._rendezvous = os.memfd_create("rendezvous")
        init_method = f"file:///proc/{os.getpid()}/fd/{self._rendezvous}"
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve,
                args=(theirs, self._build_rank, rank, self.world_size, init_method),
                name=f"rank-{rank}",
            )
            process.start()
            theirs.close()
            self._ranks.append(process)
            self._pipes.append(ours)

    def start(self) -> None:
        """Starts the ranks and waits until all are ready; nothing happens when all run.

        A rank that has died since the last task is no fault of the next: all are started anew.

        Raises:
            GangStartError: a rank failed to start.
            GangRefusedError: a rank refused to, as the job cannot run there.
            NodeFaultError: its process could not be started.
        """
        with self._turn:
            self.launch()
            if not self._starting:
                return
            try:
                self._answers(START_DEADLINE_S)
            except GangRefusedError:
                raise
            except GangError as error:
                raise GangStartError(str(error)) from error
            self._starting = False

    def run(self, task: Task, payload: Any, deadline_s: float = TASK_DEADLINE_S) -> Any:
        """Runs task(built, payload) on every rank, started if need be; returns rank 0's result.

        One task at a time: threads that share a gang wait for their turn.

        Args:
            task: a function that pickles by name; `built` is what `build_rank` returned.
            payload: handed to every rank; must pickle.
            deadline_s: seconds until a gang that does not answer counts as hung.

        Raises:
            GangStartError: the ranks had to be started, and were not.
            GangTaskError: a rank died, raised or hung. The ranks are gone; the next call rebuilds.
            NodeFaultError: likewise, by a fault of the node.
        """
        with self._turn:
            self.start()
            if self._new:
                deadline_s += getattr(self._build_rank, "warm_up_s", 0.0)
            # A rank that stops within a message would hold us in a read or write without an end.
            watchdog = threading.Timer(min(deadline_s, MOST_DEADLINE_S) + MESSAGE_S, self._kill)
            watchdog.daemon = True
            watchdog.start()
            try:
                for pipe in self._pipes:
                    pipe.send((task, payload))
                answer = self._answers(deadline_s)[0]
                self._new = False
                return answer
            except OSError as error:
                self.close()
                raise GangTaskError("a rank died or stopped as it was handed a task") from error
            finally:
                watchdog.cancel()

    def run_with_retries(
        self, task: Task, payload: Any, deadline_s: float = TASK_DEADLINE_S
    ) -> tuple[Any, int]:
        """`run`, at most MAX_ATTEMPTS times, each on fresh ranks after a failure.

        Counts in memory alone; a render job counts durably, see `attempts`.

        Returns:
            The result and the number of attempts it took.

        Raises:
            GangStartError: in the last attempt the ranks did not even start.
            GangTaskError: the last attempt's failure.
        """
        for attempt in range(1, MAX_ATTEMPTS):
            try:
                return self.run(task, payload, deadline_s), attempt
            except GangError:
                continue
        return self.run(task, payload, deadline_s), MAX_ATTEMPTS

    def close(self) -> None:
        """Kills the ranks and waits until they are gone."""
        self._kill()
        for rank in self._ranks:
            rank.join()
        for pipe in self._pipes:
            pipe.close()
        self._ranks, self._pipes = [], []
        self._starting, self._new = False, True
        if self._rendezvous is not None:
            os.close(self._rendezvous)
            self._rendezvous = None

    def _all_there(self) -> bool:
        """Whether all ranks wait for a task."""
        # The kernel closes the pipe of a rank that dies at once; the news takes a moment longer.
        return all(rank.is_alive() for rank in self._ranks) and not any(
            pipe.poll() for pipe in self._pipes
        )

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _answers(self, deadline_s: float) -> list[Any]:
        """One result a rank, by rank; kills the gang on the first sign of trouble."""
        answers: list[Any] = [None] * self.world_size
        waiting = dict(zip(self._pipes, range(self.world_size), strict=True))
        ends = {process.sentinel: rank for rank, process in enumerate(self._ranks)}
        deadline = time.monotonic() + min(deadline_s, MOST_DEADLINE_S)
        try:
            while waiting:
                ready = wait([*waiting, *ends], timeout=deadline - time.monotonic())
                if not ready:
                    raise GangTaskError(
                        f"rank {min(waiting.values())} did not answer within {deadline_s:.0f} s"
                    )
                # A rank that answers and then dies has answered: read pipes before sentinels.
                pipes = [pipe for pipe in waiting if pipe in ready]
                failures: list[GangError] = []
                for pipe in pipes:
                    rank = waiting.pop(pipe)
                    try:
                        answers[rank] = self._receive(pipe, rank)
                    except GangError as error:
                        failures.append(error)
                if failures:
                    raise min(failures, key=_place)
                if not pipes:
                    rank = min(ends[sentinel] for sentinel in ready if isinstance(sentinel, int))
                    raise self._death(rank)
        except GangError:
            self.close()
            raise
        return answers

    def _receive(self, pipe: Connection, rank: int) -> Any:
        try:
            answer: Answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._death(rank) from error
        if answer.failure is not None and answer.refused and self._starting:
            raise GangRefusedError(answer.failure)
        if answer.failure is not None:
            kind = NodeFaultError if answer.node_fault else GangTaskError
            raise kind(f"rank {rank} failed: {answer.failure}")
        return answer.result

    def _death(self, rank: int) -> GangError:
        process = self._ranks[rank]
        process.join()  # its pipe closes a moment before its exit code is known
        how = f"rank {rank} died with exit code {process.exitcode}"
        if process.exitcode == -signal.SIGBUS:
            return NodeFaultError(f"{how}: a disk or /dev/shm is full, or a mapped file is gone")
        return GangTaskError(how)


def _place(error: GangError) -> int:
    """The place of an error among those of several ranks, the one that says most first: ranks that
    waited for one that died know only that it does not answer."""
    if isinstance(error, NodeFaultError):
        return 0
    return 1 if isinstance(error.__cause__, EOFError | OSError) else 2
