"""One round of chaos: a job on a fresh root, blows until it is done, and what is there then."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from ray.cluster_utils import Cluster

from cluster.results import manifest, verification
from cluster.store import open_store
from cluster.work.schedule_table import schedule_of
from jobs.render.workflow import prepare
from tests.chaos import processes
from tests.chaos.blows import SECOND_DRIVER, Blow, Trap, kind_of, store_fault, where
from tests.support.configs import configured
from tests.support.faults import Fault, FaultProxy, Request
from tests.support.s3_server import s3_environment, serve_s3

MARK = "MEANCACHE_CHAOS"
STEPS = 2
# Rows differ in their schedules too, which one calibration gives.
SETTINGS = [
    {"num_inference_steps": steps, "height": size, "width": size}
    for steps in (STEPS, 3, 4)
    for size in (32, 64)
]
BUDGET = 2
# At which guidance overflows and the latents are NaN: a row that can only fail.
HOPELESS = 1e38
POLL_S = 0.2
# Shorter than a client's own patience, which the store's tests try: rounds would take hours.
STALL_S = 5.0
MOST_RESTARTS = 80
FINISHED = (0, 3)


class Storm:
    """What the one proxy asks about each request: the round in progress, if there is one.

    One proxy for all rounds: leaders have the environment that their nodes were started with.
    """

    def __init__(self) -> None:
        self.round: Round | None = None

    def decide(self, request: Request) -> Fault | None:
        """The fault for a request, or none."""
        return None if self.round is None else self.round.decide(request)

    def kill(self, address: tuple[str, int]) -> None:
        """Kills the process whose request the proxy holds, and counts it if it was there."""
        pid = processes.owner(address)
        if self.round is not None and pid is not None and processes.send(pid, signal.SIGKILL):
            self.round.tally[self.round.trapped.pop(address)] += 1


class Nodes:
    """A Ray cluster of real raylets on this machine: a head that only manages, and workers."""

    def __init__(self, workers: int) -> None:
        os.environ["RAY_AUTH_MODE"] = "disabled"
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self._add() for _ in range(workers)]

    def _add(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def kill_one(self) -> None:
        """Kills a worker's raylet, as a reclaimed machine goes, and brings up another."""
        victim = self.workers.pop(0)
        self.cluster.remove_node(victim, allow_graceful=False)
        self.workers.append(self._add())


@dataclass
class Round:
    """A job under attack, and then the append of more rows to what it left, if any are appended.

    `tally` counts what was done to it, by kind; half of the traps wait for the append.
    """

    nodes: Nodes
    folder: Path
    proxy: FaultProxy
    storm: Storm
    seed: int
    items: int
    gangs: str
    gang_size: int
    blows: list[Blow]
    traps: list[Trap]
    stalls: int = 0
    appended: int = 0
    tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.bucket = f"chaos-{self.seed}-{os.getpid()}"
        self.root = f"s3://{self.bucket}/run"
        self.receipts: set[str] = set()
        self.trapped: dict[tuple[str, int], str] = {}
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.log = self.folder / f"drivers-{self.seed}.log"
        self.prompts = self.folder / f"prompts-{self.seed}.jsonl"
        self.append = False
        rows: list[dict[str, Any]] = [
            {
                "prompt": f"round {self.seed} video {n}",
                "seed": n,
                "note": f"{n}",
                **SETTINGS[n % len(SETTINGS)],
            }
            for n in range(self.items)
        ]
        rows[self.items // 2]["guidance_scale"] = HOPELESS
        # Rows that ask for pixels of others, and one line twice: no row of them may be lost.
        rows += [{**rows[0], "prompt_id": "again", "note": "x"}, rows[-1], {"prompt": "open"}] * 2
        self.lines = [json.dumps(row) for row in rows]

    def run(self) -> None:
        """Attacks until a driver says that the job is done, and no other is at work."""
        boto3.client("s3").create_bucket(Bucket=self.bucket)
        before = Counter(self.proxy.counts)
        self.storm.round = self
        traps = self.traps
        if self.appended:
            self.traps = traps[::2]
            self._attack(self.lines[: -self.appended])
            self.append = True
            self.traps += traps[1::2]
        self._attack(self.lines)
        self.storm.round = None
        done = Counter(self.proxy.counts) - before
        self.tally.update({k: n for k, n in done.items() if not k.startswith("kill")})

    def _attack(self, lines: list[str]) -> None:
        """Until these rows are there."""
        self.prompts.write_text("\n".join(lines))
        self.drivers = []
        while not self._finished() or self._alive():
            if not self._alive():
                assert self.started < MOST_RESTARTS, f"no end in sight; see {self.log}"
                self._start()
            self._strike()
            self._wait()

    def decide(self, request: Request) -> Fault | None:
        """What the proxy does with a request."""
        if request.method == "PUT" and "/receipts/" in f"/{request.key}":
            self.receipts.add(request.key)
        for trap in self.traps:
            if trap.catches(request, "run"):
                self.traps.remove(trap)
                self.trapped[request.address] = f"{trap.kind} {trap.step}"
                return Fault(trap.kind)
        if self.stalls and kind_of(request) == "PUT" and where(request).startswith("run/videos/"):
            self.stalls -= 1
            return Fault("stall")
        return store_fault(self.draw, request)

    def _start(self) -> None:
        """Starts a driver with the same command as always, as a person would."""
        self.started += 1
        with self.log.open("ab") as log:
            self.drivers.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "jobs.render", *self.command(self.root)),
                        *(["--append"] if self.append else []),
                    ],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "RAY_ADDRESS": self.nodes.cluster.address},
                )
            )

    def command(self, root: str) -> list[str]:
        """The arguments of the job, which writes to a root."""
        return [
            *("--model", "tiny", "--prompts", str(self.prompts), "--steps", str(STEPS)),
            *("--budget", str(BUDGET)),
            *("--gang-size", str(self.gang_size), "--gangs", self.gangs, "--output", root),
        ]

    def _strike(self) -> None:
        while self.blows and self.blows[0].after <= len(self.receipts):
            if not self._struck(self.blows[0].kind):
                return  # nobody there to be hit: in a moment perhaps
            self.tally[self.blows.pop(0).kind] += 1

    def _struck(self, kind: str) -> bool:
        if kind == SECOND_DRIVER:
            self._start()
            return True
        if kind == "raylet killed":
            self.nodes.kill_one()
            return True
        if kind == "driver killed":
            victims = [driver.pid for driver in self._alive()]
        elif kind == "leader killed":
            victims = processes.leaders(MARK)
        else:
            victims = processes.ranks(MARK)
        what = signal.SIGSTOP if kind == "rank stopped" else signal.SIGKILL
        return bool(victims) and processes.send(self.draw.choice(victims), what)

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [driver for driver in self.drivers if driver.poll() is None]

    def _finished(self) -> bool:
        return any(driver.returncode in FINISHED for driver in self.drivers)

    def _wait(self) -> None:
        """Until a driver ends, or a moment."""
        alive = self._alive()
        if alive:
            try:
                alive[0].wait(POLL_S)
            except subprocess.TimeoutExpired:
                return


@dataclass(frozen=True)
class Outcome:
    """What is there when a round is over; all but `rows` and `started` should be empty or 0.

    `strayed` counts videos that followed another schedule than that of their own setting.
    """

    rows: int
    lost: int
    duplicate: int
    strayed: int
    corrupt: list[str]
    orphans: list[int]
    started: int


def outcome(round_: Round) -> Outcome:
    """Reads the root as anyone would, straight from the server, and compares with the plan."""
    store = open_store(round_.root)
    # What one job of all rows would do, in a root that knows none of them.
    fresh = str(round_.folder / f"fresh-{round_.seed}")
    prepared = prepare(configured("render", round_.command(fresh)))
    planned = Counter({item.id: len(item.rows) for item in prepared.items})
    rows = [
        row
        for folder in (manifest.PARTS, manifest.FAILURES)
        for key in store.list(folder)
        for row in manifest.read_rows(store.get(key))
    ]
    found = Counter(row["item_id"] for row in rows)
    findings = [finding for findings in verification.verify(store) for finding in findings]
    failed = [row["item_id"] for row in rows if row["status"] == manifest.FAILED]
    schedules = {
        item.id: schedule_of(prepared.schedule, item.arguments).id for item in prepared.items
    }
    strayed = [row for row in rows if row["schedule_id"] != schedules.get(row["item_id"])]
    hopeless = {item.id for item in prepared.items if item.arguments["guidance_scale"] == HOPELESS}
    return Outcome(
        rows=len(rows),
        lost=sum((planned - found).values()) + len(set(failed) - hopeless),
        duplicate=sum((found - planned).values()),
        strayed=len(strayed),
        corrupt=[f"{uri} {problem}" for uri, problem in findings if problem],
        orphans=processes.left_over(processes.family(MARK)),
        started=round_.started,
    )


@contextmanager
def stage(workers: int = 2) -> Iterator[tuple[Nodes, FaultProxy, Storm]]:
    """A cluster, and a store behind a proxy, which all processes from here on find by AWS_*."""
    storm = Storm()
    before = dict(os.environ)
    with (
        serve_s3() as endpoint,
        FaultProxy(endpoint, storm.decide, kill=storm.kill, patience=STALL_S) as proxy,
    ):
        marked = {MARK: "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        os.environ.update({**s3_environment(proxy.url), **marked})
        nodes = Nodes(workers)
        try:
            yield nodes, proxy, storm
        finally:
            nodes.cluster.shutdown()
            os.environ.clear()
            os.environ.update(before)


def summary(tally: Counter[str], outcomes: Sequence[Outcome]) -> str:
    """The tally as a table of text."""
    lines = [f"{number:6}  {kind}" for kind, number in sorted(tally.items())]
    lines += [
        f"{sum(tally.values()):6}  faults injected",
        f"{sum(one.started for one in outcomes):6}  drivers started",
        f"{sum(one.rows for one in outcomes):6}  rows",
        f"{sum(one.lost for one in outcomes):6}  lost",
        f"{sum(one.duplicate for one in outcomes):6}  duplicate",
        f"{sum(one.strayed for one in outcomes):6}  by another setting's schedule",
        f"{sum(len(one.corrupt) for one in outcomes):6}  corrupt",
        f"{sum(len(one.orphans) for one in outcomes):6}  orphan processes",
    ]
    return "\n".join([*lines, *(problem for one in outcomes for problem in one.corrupt)])
