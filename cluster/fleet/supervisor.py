"""Hires leaders, hears what becomes of them, and has one method for each outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.fleet.actor import LeaderActor, Work, kill_process
from cluster.fleet.errors import FleetError
from cluster.fleet.forkserver import own_name
from cluster.fleet.gang import MAX_ATTEMPTS, GangStartError, NodeFaultError, TryAgainError
from cluster.fleet.gangs import Gangs
from cluster.fleet.items import Done, Returned
from cluster.fleet.leaders import Leader, State
from cluster.fleet.node_faults import is_node_fault
from cluster.fleet.nodes import Nodes
from cluster.fleet.placement import Placement, node_of
from cluster.fleet.ray_errors import setup_error, told
from cluster.fleet.shared_output import SharedOutput
from cluster.store import StoreError

# How often a waiting driver looks up, to see whether it has been asked to stop.
POLL_S = 0.5
# How often a leader is asked for a heartbeat, and how long one may take. A leader's threads wait
# or are outside of the interpreter's lock nearly always: what takes minutes is frozen.
BEAT_S = 10.0
FROZEN_S = 120.0

Outcome = Done | Returned


class Supervisor:
    """The leaders that there are, and the answers that they owe.

    Args:
        work: what leaders do with items.
        gangs: what they lead.
        where: on which nodes they may be.
        shared: what they prove of the output; None where there is none.
        say: tells people of a node that is left out.
    """

    def __init__(
        self,
        work: Work,
        gangs: Gangs,
        where: Placement,
        shared: SharedOutput | None,
        say: Callable[[str], None],
    ) -> None:
        self.leaders: list[Leader] = []
        self.depth = gangs.depth
        self.nodes = Nodes(where, say)
        self._work, self._gangs, self._where, self._shared = work, gangs, where, shared
        # Each answer to come, and what is to be done with it.
        self._answers: dict[Any, Callable[[Any], Outcome | None]] = {}
        self._in_flight = 0

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss_idle()
        for leader in self.leaders:
            ray.kill(leader.actor)

    # What the driver asks.

    @property
    def staffed(self) -> int:
        """Leaders whose gangs have started."""
        return sum(leader.ready for leader in self.leaders)

    @property
    def hired(self) -> int:
        """Leaders that have items or will get some."""
        return sum(leader.state is not State.LEAVING for leader in self.leaders)

    @property
    def starting(self) -> list[Leader]:
        """Leaders whose gangs have not started yet."""
        return [leader for leader in self.leaders if not leader.ready]

    @property
    def working(self) -> bool:
        """Whether any item is in flight."""
        return self._in_flight > 0

    # What the driver orders.

    def hire(self) -> None:
        """Asks for one leader more; on a cluster that scales, a node more where there is none."""
        options = self._where.options(self.nodes.excluded)
        # A thread for each item in flight, and one for heartbeats.
        options["max_concurrency"] = self.depth + 1
        leads = ray.remote(LeaderActor).options(**options)
        actor = leads.remote(self._work, self._gangs, own_name())
        leader = Leader(actor)
        self.leaders.append(leader)
        self._answers[actor.arrive.remote()] = partial(self._arrived, leader)

    def assign(self, leader: Leader, index: int, item: Any, alone: bool) -> None:
        """Hands an item to a leader that has room for it."""
        leader.takes(index, alone)
        self._in_flight += 1
        self._answers[leader.actor.do.remote(item)] = partial(self._answered, leader, index)

    def dismiss_idle(self) -> None:
        """Frees what idle leaders hold; they end when they have closed their gangs."""
        for leader in [leader for leader in self.leaders if leader.idle]:
            self._dismiss(leader)

    def outcomes(self) -> Iterator[Outcome]:
        """Waits a moment for answers; yields what has become of items."""
        self._listen()
        if not self._answers:
            return
        ready, _ = ray.wait(list(self._answers), num_returns=1, timeout=POLL_S)
        for answer in ready:
            outcome = self._answers.pop(answer)(answer)
            if outcome is not None:
                yield outcome

    # What becomes of a leader that has no items yet.

    def _arrived(self, leader: Leader, answer: Any) -> None:
        try:
            leader.node, leader.pid = ray.get(answer)
        except RayError as error:
            self._died_before_ready(leader, error)
            return
        leader.enter(State.STARTING)
        leader.beat_at = time.monotonic()
        proof = leader.actor.prove.remote(self._shared)
        self._answers[proof] = partial(self._proved, leader)

    def _proved(self, leader: Leader, answer: Any) -> None:
        try:
            token, fault = ray.get(answer)
        except RayError as error:
            self._died_before_ready(leader, error)
            return
        if fault is None and self._shared is not None:
            try:
                self._shared.check(token)
            except StoreError as error:
                fault = str(error)
        if fault is not None:
            self._discard(leader)
            self.nodes.at_fault(leader.node, FleetError(fault))
            return
        self._answers[leader.actor.start.remote()] = partial(self._started, leader)

    def _started(self, leader: Leader, answer: Any) -> None:
        try:
            error = ray.get(answer)
        except RayError as death:
            self._died_before_ready(leader, death)
            return
        if error is None:
            leader.enter(State.READY)
            self.nodes.works(leader.node)
            return
        self._discard(leader)
        if isinstance(error, NodeFaultError):
            self.nodes.at_fault(leader.node, error)
        else:
            self.nodes.failed_start(leader.node, error, died=False)

    def _died_before_ready(self, leader: Leader, death: RayError) -> None:
        if isinstance(death, RayTaskError):
            raise death  # a bug of the leader's own
        refusal = setup_error(death)
        if refusal is not None:
            raise refusal from death
        how = leader.killed_for or told(death)
        leader.node = leader.node or node_of(leader.actor)
        self._discard(leader)
        if leader.pid or not _cannot_be_made(death):
            error = GangStartError(f"the gang's leader died before its ranks were ready: {how}")
            self.nodes.failed_start(leader.node, error, died=True)
        else:
            fault = FleetError(
                f"{how}. Install the project on every node, or submit it with the job"
            )
            self.nodes.at_fault(leader.node, fault)

    # What becomes of an item.

    def _answered(self, leader: Leader, index: int, answer: Any) -> Outcome:
        self._in_flight -= 1
        several = leader.gives_back(index)
        try:
            result, error = ray.get(answer)
        except RayTaskError:
            raise
        except RayError as death:
            return self._died(leader, index, several, death)
        if error is None:
            leader.failures = 0
            self._dismiss_if_done(leader)
            return Done(index, result)
        if isinstance(error, TryAgainError):
            return self._failed(leader, index, error)
        if isinstance(error, GangStartError):
            return self._not_rebuilt(leader, index, error)
        if isinstance(error, NodeFaultError) or is_node_fault(error):
            return self._met_a_fault(leader, index, error)
        raise error

    def _died(self, leader: Leader, index: int, several: bool, death: RayError) -> Returned:
        """The leader died with the item, which counts as a failed attempt if it was alone."""
        reason = f"the gang's leader died: {leader.killed_for or told(death)}"
        if leader.discarded:
            # An item returned by a leader that was already discarded is not blamed.
            return Returned(index, reason)
        leader.lost_several |= several
        leader.leaves()
        if not leader.items:
            self._discard(leader)
        # A node that was taken away on notice is no item's fault.
        alone = not getattr(death, "preempted", False)
        return Returned(index, reason, alone, blamed=alone and not leader.lost_several)

    def _failed(self, leader: Leader, index: int, error: TryAgainError) -> Returned:
        """An attempt failed. After several in a row the fault may be the gang's own."""
        leader.failures += 1
        if leader.failures == MAX_ATTEMPTS:
            leader.leaves()
        self._dismiss_if_done(leader)
        return Returned(index, str(error))

    def _not_rebuilt(self, leader: Leader, index: int, error: GangStartError) -> Returned:
        """The gang's ranks died and do not start again: no fault of the item."""
        if not leader.discarded:
            self._discard(leader)
            self.nodes.failed_start(leader.node, error, died=False)
        return Returned(index, str(error))

    def _met_a_fault(self, leader: Leader, index: int, error: Exception) -> Returned:
        """The item met a fault of its node, and moves to another."""
        if not leader.discarded:
            self._discard(leader)
            self.nodes.at_fault(leader.node, error)
        return Returned(index, str(error), fault=error)

    # Heartbeats.

    def _listen(self) -> None:
        """Asks leaders for heartbeats, and kills those that have owed one for too long."""
        now = time.monotonic()
        for leader in [leader for leader in self.leaders if leader.pid]:
            if leader.beat is None and now - leader.beat_at >= BEAT_S:
                leader.beat, leader.beat_at = leader.actor.beat.remote(), now
                self._answers[leader.beat] = partial(self._heard, leader)
            elif leader.beat is not None and now - leader.beat_at >= FROZEN_S:
                # The driver itself may have been busy for so long, and the answer be there.
                answered, _ = ray.wait([leader.beat], timeout=0)
                if not answered:
                    self._kill(leader, f"it did not answer for {now - leader.beat_at:.0f} s")

    def _heard(self, leader: Leader, answer: Any) -> None:
        leader.beat = None
        try:
            ray.get(answer)
        except RayActorError:
            if leader.idle and not leader.discarded:
                self._discard(leader)  # nothing else would tell of its death

    def _kill(self, leader: Leader, why: str) -> None:
        """Kills a frozen leader; its items come back as those of any leader that dies."""
        leader.killed_for = f"{why}, and was killed"
        self._answers.pop(leader.beat, None)
        leader.beat, leader.beat_at = None, time.monotonic()
        ray.kill(leader.actor)
        kill_process(leader.node, leader.pid)
        if leader.idle:
            self._discard(leader)

    # Ends of leaders.

    def _dismiss_if_done(self, leader: Leader) -> None:
        if leader.state is State.LEAVING and not leader.items:
            self._dismiss(leader)

    def _dismiss(self, leader: Leader) -> None:
        self._forget(leader)
        leader.actor.close.remote()

    def _discard(self, leader: Leader) -> None:
        """Makes sure of a leader that cannot be reached: another will have its items."""
        self._forget(leader)
        with suppress(RayError):
            ray.kill(leader.actor)

    def _forget(self, leader: Leader) -> None:
        leader.enter(State.DISCARDED)
        self.leaders.remove(leader)


def _cannot_be_made(death: RayError) -> bool:
    """Whether the leader's own construction failed, as where the project cannot be imported."""
    return isinstance(death, RayActorError) and bool(getattr(death, "actor_init_failed", False))
