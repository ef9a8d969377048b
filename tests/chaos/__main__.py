"""python -m tests.chaos: attacks real render jobs, then counts what was lost.

Each round is a job of its own, and in every second round rows are appended to what it leaves. It
runs on a real S3 server, behind a proxy that injects faults, and on a real Ray cluster of several
raylets. Processes are killed at random moments and at every step of the commit protocol. Exit code
0 if no row was lost, doubled or damaged and no process is left.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos import blows
from tests.chaos.round import Outcome, Round, outcome, stage, summary

# Protocol steps at which somebody is killed, a round; in nine rounds all come up.
TRAPS = 6


def main() -> int:
    """Rounds until enough faults were injected; prints the tally."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=500, help="stop after so many (default 500)")
    parser.add_argument("--items", type=int, default=60, help="videos a round (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole plan (default 0)")
    parser.add_argument("--logs", type=Path, help="keep the drivers' logs in this folder")
    options = parser.parse_args()
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    tally: Counter[str] = Counter()
    outcomes: list[Outcome] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, stage() as (nodes, proxy, storm):
        traps: list[blows.Trap] = []
        while sum(tally.values()) < options.faults:
            number = len(outcomes)
            if len(traps) < TRAPS:
                traps = draw.sample(list(blows.all_traps()), 2 * len(blows.STEPS))
            kinds = {
                "rank killed": 2,
                "rank stopped": int(number % 3 == 1),
                "leader killed": 1,
                "driver killed": 1,
                "raylet killed": int(number % 2 == 0),
                blows.SECOND_DRIVER: 1 + number % 2,
            }
            round_ = Round(
                nodes,
                options.logs or Path(folder),
                proxy,
                storm,
                seed=draw.randrange(10**6),
                items=options.items,
                gangs="2",
                gang_size=1 + number % 2,
                blows=blows.blows(draw, options.items, kinds),
                traps=[traps.pop() for _ in range(TRAPS)],
                stalls=int(number % 3 == 0),
                appended=options.items // 2 if number % 2 else 0,
            )
            round_.run()
            outcomes.append(outcome(round_))
            tally += round_.tally
            last = outcomes[-1]
            print(
                f"round {number}: {sum(round_.tally.values())} faults, {last.started} drivers, "
                f"{last.rows} rows, lost {last.lost}, duplicate {last.duplicate}, strayed "
                f"{last.strayed}, corrupt {len(last.corrupt)}, orphans {len(last.orphans)}; in all "
                f"{sum(tally.values())}/{options.faults} faults, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    print(summary(tally, outcomes))
    bad = any(
        one.lost or one.duplicate or one.strayed or one.corrupt or one.orphans for one in outcomes
    )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
