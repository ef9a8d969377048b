"""A rank's whole life: built once, then it answers tasks until its leader closes the pipe."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from cluster.fleet.node_faults import is_node_fault
from meancache.errors import InputError

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Answer:
    """What a rank says of a task.

    Attributes:
        result: of the task, from the rank that has one.
        failure: the exception's class and message; None where there was none.
        node_fault: the exception is about the node, see `is_node_fault`.
        refused: the exception says that what was asked for cannot be, an InputError.
    """

    result: Any = None
    failure: str | None = None
    node_fault: bool = False
    refused: bool = False


def serve(
    pipe: Connection,
    build_rank: Callable[[int, int, str], Any],
    rank: int,
    world_size: int,
    init_method: str,
) -> None:
    """Builds the rank, and answers tasks.

    Args:
        pipe: to the leader, which sends (task, payload) and gets an `Answer` for each, and one
            more when the rank is built.
        build_rank: called as (rank, world_size, init_method).
        rank: which this is.
        world_size: of how many.
        init_method: where the ranks meet, for torch.distributed.
    """
    _die_with_leader()
    built = _report(pipe, partial(build_rank, rank, world_size, init_method), silent=True)
    while True:
        try:
            task, payload = pipe.recv()
        except EOFError:
            return
        _report(pipe, partial(task, built, payload), silent=False)


def _report(pipe: Connection, work: Callable[[], Any], silent: bool) -> Any:
    """Does the work and answers the leader, without the result where that is to stay here."""
    try:
        result = work()
    except Exception as error:
        traceback.print_exc()  # before the leader hears of it, and kills this rank
        failure = "".join(traceback.format_exception_only(error)).strip()
        refused = isinstance(error, InputError)
        if refused:
            failure = str(error)  # a sentence, for the user
        pipe.send(Answer(failure=failure, node_fault=is_node_fault(error), refused=refused))
        return None
    pipe.send(Answer(None if silent else result))
    return result


def _die_with_leader() -> None:
    """Asks the kernel to kill this process when its leader ends, in whatever way.

    Its parent is the process that it was forked from, which ends when nobody holds a certain pipe.
    Without this rank, that is the leader alone.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    leader = multiprocessing.parent_process()
    if leader is None or not leader.is_alive():  # it ended before the kernel was asked
        os._exit(1)
