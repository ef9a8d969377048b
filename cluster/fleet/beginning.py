"""What a job begins with, side by side: Ray, and the process that has imported torch.

Imports Ray only when it is called, so that what is refused before does without.
"""

from __future__ import annotations

import os
import sys

from cluster.fleet import forkserver
from cluster.fleet.gangs import Gangs


def begin(gangs: Gangs) -> None:
    """Joins the cluster, or starts one, and looks whether it can hold such gangs.

    Nothing else is begun: a job that is refused here leaves no trace.

    Raises:
        FleetError: there is no such cluster, or no room for one gang on it.
    """
    if os.environ.get("RAY_ADDRESS", "") in ("", "local"):  # gangs will be on this machine
        forkserver.keep(gangs.needs)
    from cluster.fleet.connection import connect
    from cluster.fleet.placement import placement

    connect(starting)
    placement(gangs.size, gangs.on_gpus)


def starting() -> None:
    """Says that Ray is started here, which takes some seconds of silence."""
    print("starting Ray", file=sys.stderr, flush=True)
