"""python -m jobs.benchmark scale: what a job costs around the model, up to a million rows.

Renders with ranks that render nothing; all else is real, so the figures are what planning,
handing out, mp4, store and receipts take, and what the driver holds in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import fleet, manifest
from cluster.delivery import Delivery
from cluster.manifest import Manifest
from cluster.null import NullRenderer
from jobs import _cli, render
from jobs._progress import progress


@dataclass(frozen=True)
class Prepared:
    """A benchmark of so many rows."""

    rows: int
    gangs: int
    folder: Path
    json: Path | None


def prepare(options: argparse.Namespace) -> Prepared:
    """Finds an empty place for the root."""
    folder = Path(options.output or tempfile.mkdtemp(prefix="benchmark-"))
    if folder.exists() and any(folder.iterdir()):
        raise fleet.FleetError(f"--output {folder} is not empty: give a folder for the benchmark")
    return Prepared(options.rows, options.gangs, folder, options.json)


def perform(prepared: Prepared) -> int:
    """Half of a job, its resumption, and its resubmission when it is finished; prints figures."""
    figures: dict[str, float] = {"rows": prepared.rows, "gangs": prepared.gangs}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        figures[name] = time.perf_counter() - started

    prepared.folder.mkdir(parents=True, exist_ok=True)
    prompts = prepared.folder / "prompts.txt"
    with prompts.open("w") as file:
        file.writelines(f"prompt {number} of a benchmark\n" for number in range(prepared.rows))
    command = [
        *("--model", "tiny", "--prompts", str(prompts), "--budget", "10"),
        *("--output", str((prepared.folder / "root").absolute())),
    ]
    gangs = fleet.Gangs(NullRenderer, 1, prepared.gangs, prepared.gangs)

    def plan() -> render.Prepared:
        return replace(render.prepare(render.parser().parse_args(command)), gangs=gangs)

    with timed("plan_s"):
        job = plan()
    with timed("first_half_s"):
        _deliver_half(job)
    with timed("find_missing_s"):
        missing = sum(map(len, Manifest(job.store).open_shards(job.items).values()))
    if missing != len(job.items) - len(job.items) // 2:
        raise RuntimeError(f"{missing} items are missing after half of {len(job.items)}")
    with timed("second_half_s"):
        code = render.perform(job)
    del job
    with timed("resubmit_finished_s"):
        code = code or render.perform(plan())
    halves = figures["first_half_s"] + figures["second_half_s"]
    figures["items_per_s"] = prepared.rows / halves
    figures["driver_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, value in figures.items():
        print(f"{name:20} {value:.4g}" if value % 1 else f"{name:20} {value:.0f}")
    if prepared.json is not None:
        prepared.json.write_text(json.dumps(figures, indent=1))
    print(f"its {prepared.rows} videos and receipts are in {prepared.folder}")
    return code


def _deliver_half(job: render.Prepared) -> None:
    """The first half of the items, as a driver delivers them that is then killed."""
    here = Manifest(job.store)
    half = job.items[: len(job.items) // 2]
    whole = manifest.by_shard(job.items)
    left = {shard: len(members) for shard, members in whole.items()}
    work = Delivery(here, job.model, job.schedule)
    render.plan.freeze(job.store, job.spec)
    for row in progress(fleet.run(work, half, job.gangs, work.lost), len(half), "videos"):
        left[row["shard"]] -= 1
        if not left[row["shard"]]:
            here.close_shard(row["shard"], whole[row["shard"]])


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.benchmark",
        "scale: renders rows with ranks that render nothing, and reports the time to plan, items\n"
        "a second, the time to find what is missing in a half-finished root, the time of a\n"
        "resubmission and the driver's peak memory. Every row leaves two small files.",
        "python -m jobs.benchmark scale --rows 10000",
    )
    result.add_argument("what", choices=["scale"], help="what to measure")
    result.add_argument(
        "--rows", type=_cli.positive, default=10_000, metavar="N", help="default 10000"
    )
    result.add_argument(
        "--gangs", type=_cli.positive, default=2, metavar="N", help="gangs at once (default 2)"
    )
    result.add_argument(
        "--output", metavar="DIR", help="an empty folder for the root (default: a temporary one)"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
