"""The Ray actor that leads one gang: it runs on the gang's node, and its ranks are its children.

Errors travel as results: raised here, Ray would wrap them in pages of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.fleet import logs
from cluster.fleet.forkserver import join
from cluster.fleet.gang import GangError
from cluster.fleet.gangs import Gangs
from cluster.fleet.shared_output import SharedOutput
from cluster.store import StoreError

Work = Callable[[Any, Any], Any]
"""What is done to each item, with the leader's gang. It must pickle and hold no credential.

It may raise TryAgainError, and then gets the item again, mostly on another leader.
"""

# What a node's temporary folder has to hold for a gang to start: sockets, and some room.
TEMPORARY_BYTES = 2**20


class LeaderActor:
    """Holds one gang. Several items may be in flight at once, each in a thread of Ray's.

    Args:
        work: what is done to each item.
        gangs: what this leads one of.
        forkserver: the name of the driver's jobs, see `forkserver.connected`.
    """

    def __init__(self, work: Work, gangs: Gangs, forkserver: str) -> None:
        logs.to_stderr()
        # Else multiprocessing runs the program of Ray's worker in each rank, which imports Ray.
        vars(sys.modules["__main__"]).pop("__file__", None)
        if gangs.needs:
            join(forkserver, gangs.needs)
        self.work = work
        self.gang = gangs.gang()

    def arrive(self) -> tuple[str, int]:
        """The id of the node where Ray has placed this leader, and its process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def prove(self, shared: SharedOutput | None) -> tuple[str, str | None]:
        """Tries what every gang needs of its node: (answer to the driver, fault or None)."""
        try:
            with tempfile.TemporaryFile() as file:
                file.write(bytes(TEMPORARY_BYTES))
            return (shared.answer() if shared else ""), None
        except OSError as error:
            return "", f"its temporary folder cannot be used: {error}"
        except StoreError as error:
            return "", str(error)

    def start(self) -> GangError | None:
        """Starts the ranks; the error, if they do not start."""
        try:
            self.gang.start()
        except GangError as error:
            return error
        return None

    def do(self, item: Any) -> tuple[Any, Exception | None]:
        """One item: (result, None) or (None, error)."""
        try:
            return self.work(self.gang, item), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            return None, error

    def beat(self) -> None:
        """Answers, and so shows that this process is not frozen."""

    def close(self) -> None:
        """Ends the gang and this process."""
        self.gang.close()
        ray.actor.exit_actor()


def kill_process(node: str, pid: int) -> None:
    """Asks a node to kill a leader that is frozen: Ray alone calls it dead and lets it be.

    Its ranks end with it.
    """
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    _kill.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(pid)


@ray.remote
def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
