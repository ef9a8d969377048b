"""python -m jobs.benchmark scale: what a job costs around the model, up to a million rows.

Renders with ranks that render nothing; all else is real, so the figures are what planning,
handing out, mp4, store and receipts take, and what the driver holds in memory. Gangs
deliver only a part of a large job; the other receipts are written as their leaders would do it.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.fleet import driver as fleet
from cluster.fleet import metrics
from cluster.fleet.delivery import Delivery
from cluster.results import manifest
from cluster.results.manifest import Manifest
from cluster.store import is_remote
from cluster.work import plan
from cluster.work.plan import SHARD_SIZE, WorkItem
from jobs._shared import cli
from jobs._shared.configs import ModelConfig
from jobs._shared.numbers import positive
from jobs._shared.progress import progress
from jobs.benchmark.null import NullRenderer
from jobs.render import workflow as render

# How many of each half of the rows gangs deliver: enough to know the rate.
BY_GANGS = 10_000


@dataclass(frozen=True)
class Config:
    """A benchmark of so many rows.

    Attributes:
        rows: of the job.
        gangs: at once.
        output: a new folder for the root; None for a temporary one.
        json: a file for the figures, or None.
    """

    rows: int = 10_000
    gangs: int = 2
    output: str | None = None
    json: Path | None = None


def _folder(output: str | None) -> Path:
    """An empty place for the root. Raises SpecError."""
    folder = Path(output or tempfile.mkdtemp(prefix="benchmark-"))
    if output and (is_remote(output) or folder.exists()):
        raise plan.SpecError(f"--output {folder} must be a folder that does not exist yet")
    return folder


def run(config: Config) -> None:
    """Half of a job, its resumption, and its resubmission when it is finished; prints figures."""
    folder = _folder(config.output)
    figures: dict[str, float] = {"rows": config.rows, "gangs": config.gangs}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        figures[name] = figures.get(name, 0.0) + time.perf_counter() - started

    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    with prompts.open("w") as file:
        file.writelines(f"prompt {number} of a benchmark\n" for number in range(config.rows))
    rendering = render.Config(
        output=str((folder / "root").absolute()),
        prompts=str(prompts),
        model=ModelConfig("tiny"),
        budget=10,
    )
    with timed("plan_s"):
        job = render.prepare(rendering)
    here = Manifest(job.store)
    plan.freeze(job.store, job.spec)
    half = len(job.items) // 2
    delivered = 0
    for part in filter(None, (job.items[:half], job.items[half:])):
        by_gangs, by_hand = part[:BY_GANGS], part[BY_GANGS:]
        delivered += len(by_gangs)
        row, seconds = _deliver(job, by_gangs, config.gangs)
        figures["deliver_s"] = figures.get("deliver_s", 0.0) + seconds
        _write_receipts(here, by_hand, row)
        with timed("find_missing_s"):
            missing = here.open_shards(job.items)
        if sum(map(len, missing.values())) != len(job.items) - 1 - part[-1].index:
            raise RuntimeError(f"what is missing after {part[-1].index + 1} items is not the rest")
        for shard, members in progress(missing.items(), len(missing), "shards"):
            if not members:
                here.close_shard(shard, job.items[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE])
    with timed("finish_s"):
        here.finish(manifest.by_shard(job.items))
    with timed("report_s"):
        render.write_page(job.store)
    # Before the job is planned once more in the same process, which no driver does.
    figures["driver_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    del job, missing
    with timed("resubmit_finished_s"):
        render.run(rendering)
    figures["items_per_s"] = delivered / figures["deliver_s"]
    for name, value in figures.items():
        print(f"{name:20} {value:.4g}" if value % 1 else f"{name:20} {value:.0f}")
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=1))
    print(f"{delivered} videos by gangs, {config.rows} receipts: {folder}")


def _deliver(
    job: render.Prepared, items: Sequence[WorkItem], gangs: int
) -> tuple[dict[str, Any], float]:
    """Delivers items by gangs that render nothing; the last row, and the seconds from the first."""
    work = Delivery(Manifest(job.store), job.model, job.schedule, told=metrics.record)
    fleet_of = fleet.Gangs(NullRenderer, 1, gangs, gangs, NullRenderer)
    rows = fleet.run(work, items, fleet_of, work.lost)
    results = progress(rows, len(items), "videos")
    row = next(results)  # before it the ranks start
    started = time.perf_counter()
    for _ in results:
        pass
    return row, time.perf_counter() - started


def _write_receipts(here: Manifest, items: Sequence[WorkItem], like: dict[str, Any]) -> None:
    """Commits the items without their videos, by rows that tell of one that was delivered."""

    def commit(item: WorkItem) -> None:
        of_item = {name: getattr(item, name) for name in ("prompt_id", "prompt", "index", "seed")}
        here.commit({**like, **of_item, "item_id": item.id, "shard": item.shard})

    for _ in progress(map(commit, items), len(items), "receipts"):
        pass


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.benchmark scale",
        "Renders rows with ranks that render nothing, and reports the time to plan, items\n"
        "a second, the time to find what is missing in a half-finished root, the time of a\n"
        "resubmission and the driver's peak memory. Every row leaves a receipt.",
        "python -m jobs.benchmark scale --rows 10000",
    )
    result.add_argument("--rows", type=positive, default=10_000, metavar="N", help="default 10000")
    result.add_argument(
        "--gangs", type=positive, default=2, metavar="N", help="gangs at once (default 2)"
    )
    result.add_argument(
        "--output", metavar="DIR", help="a new folder for the root (default: a temporary one)"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, _run)


def _run(options: argparse.Namespace) -> int:
    run(Config(options.rows, options.gangs, options.output, options.json))
    return 0
