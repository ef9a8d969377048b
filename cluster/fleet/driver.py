"""Many gangs over one Ray cluster: hands out items, hands back results.

One Ray actor leads each gang; its ranks are its child processes. A leader has one item in its
hands, or, where there is a codec beside its gang, as many as there are stages to keep busy. So a
leader that dies costs those and no others, and a driver that stops has nothing queued. Knows
nothing of what is done to an item: that is the job's `Work`.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.fleet import logs
from cluster.fleet.connection import connect
from cluster.fleet.draining import Stopped, draining
from cluster.fleet.gang import (
    MAX_ATTEMPTS,
    BuildRank,
    Gang,
    GangError,
    GangStartError,
    GangTaskError,
    TryAgainError,
)
from cluster.fleet.staged_gang import DEPTH, StagedGang
from meancache.errors import InputError

# Of a machine without GPUs a leader reserves little: the ranks' cores are not Ray's to count.
CPU_SHARE = 0.01
# How often a waiting driver looks up, to see whether it has been asked to stop.
POLL_S = 0.5


class FleetError(InputError):
    """The cluster cannot hold the gangs that were asked for; the message says what it has."""


Work = Callable[[Any, Any], Any]
"""What is done to each item, with the leader's gang. It must pickle and hold no credential.

It may raise TryAgainError, and then gets the item again, mostly on another leader.
"""

Lost = Callable[[Any, str], None]
"""Told of an item whose leader died with it alone, and how, before it is handed out again."""
Staffed = Callable[[int], None]
"""Told of how many gangs have started."""


@dataclass(frozen=True)
class Gangs:
    """The gangs of a job.

    Attributes:
        build_rank: called on each rank of a new gang.
        size: ranks in a gang.
        least: how many gangs to begin with; None for all that there is room for.
        most: how many gangs to grow to while items wait; None likewise.
        build_encoders: of what is beside each gang, see `StagedGang`; None for gangs alone.
        encoders_size: ranks in that.
    """

    build_rank: BuildRank
    size: int
    least: int | None = None
    most: int | None = None
    build_encoders: BuildRank | None = None
    encoders_size: int = 1

    @property
    def depth(self) -> int:
        """Items in the hands of a leader."""
        return 1 if self.build_encoders is None else DEPTH

    def lead(self) -> Gang | StagedGang:
        """What a leader works with, not started."""
        gang = Gang(self.build_rank, self.size)
        if self.build_encoders is None:
            return gang
        return StagedGang(gang, Gang(self.build_encoders, self.encoders_size))


def parse_count(text: str) -> tuple[int, int]:
    """Reads how many gangs: 'A' or 'A:B', as (least, most). Raises FleetError."""
    match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise FleetError(f"gangs {text!r} must be A or A:B with 1 <= A <= B, such as 4 or 2:8")
    return least, most


def run(
    work: Work,
    items: Sequence[Any],
    gangs: Gangs,
    lost: Lost = lambda item, how: None,
    staffed: Staffed = lambda gangs: None,
) -> Generator[Any, None, None]:
    """Does all items with as many gangs as asked for; yields results as they come, unordered.

    On SIGTERM nothing more is handed out, what the gangs finish within the grace is still
    yielded, and then `Stopped` is raised.

    Args:
        work: what to do with each item.
        items: anything that pickles.
        gangs: who does it.
        lost: told of each item whose leader died with it. Where there were several, none is blamed,
            but each is handed out alone from there on.
        staffed: told, whenever it is looked at, how many gangs are ready or at work.

    Raises:
        FleetError: the cluster has no room for one gang.
        GangError: the ranks of a gang do not start, or its leader died again and again.
        Stopped: the driver was asked to stop before all was done.
        Exception: whatever an item's work raised.
    """
    if not items:
        return
    connect()
    resources, places = _room(gangs.size)
    least = min(gangs.least or places, len(items))
    most = min(gangs.most or places, len(items))
    waiting = deque(range(len(items)))
    deaths: Counter[int] = Counter()
    suspects: set[int] = set()
    results: list[Any] = []
    with _Pool(work, gangs, resources, most) as pool, draining() as drain:
        for _ in range(least):
            pool.hire()
        while waiting or pool.working or results:
            while waiting and not drain.requested:
                if not pool.assign(waiting[0], items[waiting[0]], alone=waiting[0] in suspects):
                    break
                waiting.popleft()
            if not waiting or drain.requested:
                pool.dismiss_idle()
            elif pool.size < pool.places and not pool.starting:
                pool.hire()
            staffed(pool.ready)
            # Only now, so that no gang waits for what the job does with a result.
            yield from results
            results.clear()
            if drain.requested and (waiting or pool.working) and (drain.over or not pool.working):
                raise Stopped
            for index, result in pool.finished():
                if not isinstance(result, _Undone):
                    results.append(result)
                    continue
                waiting.appendleft(index)
                if result.suspect:
                    suspects.add(index)
                if result.blamed:
                    deaths[index] += 1
                    lost(items[index], result.reason)
                    # `lost` may have noted it, so that the next leader gives the item up.
                    if deaths[index] > MAX_ATTEMPTS:
                        raise GangTaskError(f"an item's leader died every time: {result.reason}")


def on_a_worker(check: Callable[[], Any]) -> None:
    """Calls `check` in a worker process of the cluster, before any gang is started there.

    Workers have the environment of their node, not that of the driver: what the driver can
    reach they may not.

    Raises:
        FleetError: the check raised; holds its message.
    """
    connect()
    try:
        ray.get(_call.options(num_cpus=0, max_retries=0).remote(check))
    except RayTaskError as error:
        raise FleetError(
            f"a worker of the cluster fails where this driver does not: {error.cause}. Workers "
            "have their node's environment: start the cluster with it, or use the nodes' role"
        ) from error


@ray.remote
def _call(check: Callable[[], Any]) -> None:
    check()


@dataclass(frozen=True)
class _Undone:
    """In place of a result.

    Attributes:
        reason: of the failure.
        suspect: the leader died with it, for whatever reason.
        blamed: and with no other.
    """

    reason: str
    suspect: bool = False
    blamed: bool = False


class _Pool:
    """The leaders that there are, and what each is doing.

    `places` is how many there may be. One is given up after MAX_ATTEMPTS gangs in a row that did
    not start (a broken node, say); the job ends when none is left, or when no gang ever started.
    """

    def __init__(self, work: Work, gangs: Gangs, resources: dict[str, float], places: int) -> None:
        self.places = places
        self._work, self._gangs, self._resources = work, gangs, resources
        self._starting: dict[Any, Any] = {}  # answer to come -> leader
        self._working: dict[Any, tuple[Any, int]] = {}  # answer to come -> leader, item
        self._hands: dict[Any, set[int]] = {}  # of each leader that runs: its items
        self._alone: set[int] = set()  # items whose leader gets no other
        self._leaving: set[Any] = set()  # leaders that get no more
        self._crowded: set[Any] = set()  # leaders that died with several
        self._failures: Counter[Any] = Counter()  # of each leader, in a row
        self._failed_starts = 0
        self._proven = False

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss_idle()
        for leader in [*self._starting.values(), *self._hands]:
            ray.kill(leader)

    @property
    def size(self) -> int:
        return len(self._starting) + len(self._hands) - len(self._leaving)

    @property
    def ready(self) -> int:
        """Leaders whose gangs have started."""
        return len(self._hands)

    @property
    def starting(self) -> bool:
        return bool(self._starting)

    @property
    def working(self) -> bool:
        return bool(self._working)

    def hire(self) -> None:
        """Asks for one leader more; on a cluster that scales, a node more where there is none."""
        # Spread over the nodes, so that the loss of one costs as few gangs as can be.
        options = {**self._resources, "scheduling_strategy": "SPREAD"}
        # Its threads carry an item each.
        options["max_concurrency"] = self._gangs.depth
        leader = ray.remote(_Leader).options(**options).remote(self._work, self._gangs)
        self._starting[leader.start.remote()] = leader

    def assign(self, index: int, item: Any, alone: bool) -> bool:
        """Hands an item to the leader with the emptiest hands; False where none is free.

        Args:
            index: of the item.
            item: it.
            alone: only to a leader with nothing else in its hands, which gets nothing more.
        """
        most = 0 if alone else self._gangs.depth - 1
        free = [
            leader
            for leader, hands in self._hands.items()
            if len(hands) <= most and leader not in self._leaving and not hands & self._alone
        ]
        if not free:
            return False
        # An item that failed is better tried elsewhere than where it, or another, failed.
        leader = min(free, key=lambda one: (self._failures[one], len(self._hands[one])))
        self._hands[leader].add(index)
        if alone:
            self._alone.add(index)
        self._working[leader.do.remote(item)] = leader, index
        return True

    def dismiss_idle(self) -> None:
        """Frees what idle leaders hold; they end when they have closed their gangs."""
        for leader in [leader for leader, hands in self._hands.items() if not hands]:
            self._dismiss(leader)

    def finished(self) -> Iterator[tuple[int, Any]]:
        """Waits a moment for answers; yields (item's index, result or _Undone) of those there."""
        answers = [*self._starting, *self._working]
        if not answers:
            return
        ready, _ = ray.wait(answers, num_returns=1, timeout=POLL_S)
        for answer in ready:
            if answer in self._starting:
                self._started(self._starting.pop(answer), answer)
                continue
            leader, index = self._working.pop(answer)
            self._alone.discard(index)
            # Of a leader that was buried with it, an item comes back without blame.
            buried = leader not in self._hands
            company = not buried and len(self._hands[leader]) > 1
            if not buried:
                self._hands[leader].discard(index)
            try:
                result, error = ray.get(answer)
            except RayTaskError:
                raise
            except RayError as death:
                reason = f"the gang's leader died: {_sentence(death)}"
                # A node that was taken away on notice is no item's fault.
                suspect = not buried and not getattr(death, "preempted", False)
                if company:
                    self._crowded.add(leader)
                blamed = suspect and leader not in self._crowded
                if not buried:
                    self._leaving.add(leader)
                    if not self._hands[leader]:
                        self._bury(leader)
                yield index, _Undone(reason, suspect, blamed)
                continue
            if isinstance(error, GangStartError):
                if not buried:
                    self._not_started(leader, error)
                yield index, _Undone(str(error))
                continue
            if isinstance(error, TryAgainError):
                self._failures[leader] += 1
                # The fault may be its gang's own: another takes its place.
                if self._failures[leader] == MAX_ATTEMPTS and not buried:
                    self._leaving.add(leader)
            elif error is not None:
                raise error
            else:
                self._failures.pop(leader, None)
            if leader in self._leaving and not self._hands[leader]:
                self._dismiss(leader)
            yield index, _Undone(str(error)) if error is not None else result

    def _started(self, leader: Any, answer: Any) -> None:
        try:
            error = ray.get(answer)
        except RayTaskError:
            raise
        except RayError as death:
            reason = f"the gang's leader died before its ranks were ready: {_sentence(death)}"
            self._not_started(leader, GangStartError(reason))
            return
        if error is not None:
            if not self._proven:
                raise error  # what no gang could do the next will not
            self._not_started(leader, error)
            return
        self._failed_starts, self._proven = 0, True
        self._hands[leader] = set()

    def _not_started(self, leader: Any, error: GangError) -> None:
        self._bury(leader)
        self._failed_starts += 1
        if self._failed_starts == MAX_ATTEMPTS:
            self._failed_starts = 0
            self.places -= 1
        if not self.places:
            raise error

    def _dismiss(self, leader: Any) -> None:
        self._forget(leader)
        leader.close.remote()

    def _bury(self, leader: Any) -> None:
        """Makes sure of a leader that cannot be reached: another will have its items."""
        self._forget(leader)
        with suppress(RayError):
            ray.kill(leader)

    def _forget(self, leader: Any) -> None:
        self._hands.pop(leader, None)
        self._leaving.discard(leader)
        self._crowded.discard(leader)
        self._failures.pop(leader, None)


def _sentence(error: Exception) -> str:
    """What Ray says of a death, without its pages of advice."""
    text = " ".join(str(error).split())
    return text.partition(" Some common causes")[0].rstrip(".")


class _Leader:
    """The actor that holds one gang.

    Errors travel as results: raised here, Ray would wrap them in pages of its own.
    """

    def __init__(self, work: Work, gangs: Gangs) -> None:
        logs.to_stderr()
        self.work = work
        self.gang = gangs.lead()

    def start(self) -> GangError | None:
        try:
            self.gang.start()
        except GangError as error:
            return error
        return None

    def do(self, item: Any) -> tuple[Any, Exception | None]:
        try:
            return self.work(self.gang, item), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            return None, error

    def close(self) -> None:
        self.gang.close()
        ray.actor.exit_actor()


def fits(gang_size: int) -> bool:
    """Whether the cluster has room for a gang of this size now; joins it, or starts one."""
    connect()
    with suppress(FleetError):
        _room(gang_size)
        return True
    return False


def _room(gang_size: int) -> tuple[dict[str, float], int]:
    """Ray resources of one gang, and how many gangs the cluster has room for now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if any(gpus):
        room = sum(count // gang_size for count in gpus)
        if room == 0:
            raise FleetError(
                f"gang size {gang_size} needs {gang_size} GPUs on one node, but the largest node "
                f"has {max(gpus)}: use a smaller --gang-size"
            )
        return {"num_gpus": gang_size}, room
    cores = [int(node.get("CPU", 0)) for node in nodes]
    return {"num_cpus": CPU_SHARE}, max(1, sum(count // gang_size for count in cores))
