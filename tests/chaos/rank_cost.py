"""python -m tests.chaos.rank_cost: the time that one killed rank of `tiny` costs a job.

Delivers videos with a gang, kills one of its ranks in the middle of some of them, and compares.
Lost are the part of the video that was done, the start of a new gang, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time

from cluster.fleet.delivery import Delivery
from cluster.fleet.gang import Gang, TryAgainError
from cluster.fleet.staged_gang import StagedGang
from cluster.models.model import find_model
from cluster.ranks import denoiser_builder, encoders_builder
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt


def main() -> int:
    """Prints seconds a video without and with a kill, and their difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rank_cost", description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="default 5")
    parser.add_argument("--gang-size", type=int, default=2, help="ranks (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    model = find_model("tiny")
    prompts = [Prompt(n, f"prompt {n}", str(n)) for n in range(1, 2 * options.kills + 2)]
    items = plan_items(prompts, model, model.defaults)
    calm, struck = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        StagedGang(
            Gang(denoiser_builder(model), options.gang_size), Gang(encoders_builder(model), 1)
        ) as gang,
    ):
        deliver = Delivery(Manifest(open_store(folder)), model, None)
        deliver(gang, items[0])  # the first video of a gang is slower
        for number, item in enumerate(items[1:]):
            started = time.monotonic()
            if number % 2:
                victim = draw.choice(gang.gang.pids)
                delay = draw.uniform(0.1, 0.7) * statistics.median(calm)
                threading.Timer(delay, os.kill, (victim, signal.SIGKILL)).start()
            try:
                row = deliver(gang, item)
            except TryAgainError:
                row = deliver(gang, item)
            (struck if number % 2 else calm).append(time.monotonic() - started)
            assert (row["status"], row["attempts"]) == ("ok", 1 + number % 2), row
    lost = [seconds - statistics.median(calm) for seconds in struck]
    print(f"{len(calm)} videos in peace: {statistics.mean(calm):.2f} s each")
    print(f"{len(struck)} videos whose rank was killed: {statistics.mean(struck):.2f} s each")
    print(
        f"lost to a killed rank, gang of {options.gang_size}: mean {statistics.mean(lost):.1f} s, "
        f"from {min(lost):.1f} to {max(lost):.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
