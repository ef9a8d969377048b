"""python -m jobs.render: prompts + a schedule -> mp4s and a Parquet manifest, each row once.

Resume is the same command: what has a receipt is done, everything else is open.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster import fleet, manifest, plan
from cluster.delivery import Delivery
from cluster.model import Model
from cluster.plan import WorkItem, plan_items, specification
from cluster.prompts import read_prompts
from cluster.store import MissingKey, Store, StoreError, read
from jobs import _cli
from jobs._progress import duration, progress
from jobs.solve import prediction, smallest_budget
from meancache.schedule import Schedule, ScheduleError

SHIPPED = Path(__file__).parent.parent / "schedules"
# How many receipts are read to know the rate of a job that ran before.
RATE_SAMPLE = 20


@dataclass(frozen=True)
class Prepared:
    """A render job that nothing speaks against."""

    store: Store
    model: Model
    schedule: Schedule | None
    items: list[WorkItem]
    rows: int
    spec: Mapping[str, Any]
    gangs: fleet.Gangs
    dry_run: bool


def prepare(options: argparse.Namespace) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = _cli.model_and_arguments(options)
    gangs = _cli.gangs(options, model)
    schedule = _schedule(options, model, arguments["num_inference_steps"])
    prompts = read_prompts(options.prompts)
    items = plan_items(prompts, model, arguments, schedule)
    for checked in {tuple(sorted(item.arguments.items())): item for item in items}.values():
        model.check_arguments(checked.arguments, gangs.size)
        if schedule is not None:
            model.check_schedule(schedule, checked.arguments)
    spec = specification("render", items, model, arguments, schedule)
    store = _cli.open_output(options)
    plan.check_spec(store, spec)
    return Prepared(
        store=store,
        model=model,
        schedule=schedule,
        items=items,
        rows=len(prompts),
        spec=spec,
        gangs=gangs,
        dry_run=options.dry_run,
    )


def perform(prepared: Prepared) -> int:
    """Renders what is open, closes shards as they fill, and ends with `_SUCCESS`."""
    store, items = prepared.store, prepared.items
    todo = manifest.open_items(store, items)
    _announce(prepared, todo)
    if prepared.dry_run:
        return 0
    if todo:
        fleet.on_a_worker(partial(store.exists, plan.SPEC_KEY))
    plan.freeze(store, prepared.spec)
    shards = manifest.by_shard(items)
    missing = Counter(item.shard for item in todo)
    work = Delivery(store, prepared.model, prepared.schedule)
    results = fleet.run(work, todo, prepared.gangs)
    for row in progress(results, len(todo), "videos"):
        if row["status"] == manifest.FAILED:
            print(f"\nfailed: {row['item_id']}: {row['error']}", file=sys.stderr)
        missing[row["shard"]] -= 1
        if missing[row["shard"]] == 0:
            manifest.commit_shard(store, row["shard"], shards[row["shard"]])
    for shard, members in shards.items():  # those that a driver filled but did not close
        manifest.commit_shard(store, shard, members)
    success = manifest.commit_success(store, list(shards))
    print(
        f"{success['rows']} videos, {success['failed']} failed: "
        f"{store.uri(manifest.PARTS.rstrip('/'))}"
    )
    return _cli.EXIT_FAILED_ITEMS if success["failed"] else 0


def _schedule(options: argparse.Namespace, model: Model, steps: int) -> Schedule | None:
    """The schedule of --schedule, or a shipped one that was asked for, or None for every step."""
    if options.schedule is not None:
        try:
            return Schedule.loads(read(options.schedule))
        except (StoreError, ScheduleError) as error:
            raise ScheduleError(f"schedule {options.schedule}: {error}") from error
    if options.budget is None and options.target_psnr is None:
        return None
    if options.budget is not None and not 1 <= options.budget <= steps:
        raise ScheduleError(f"budget {options.budget} must be between 1 and the {steps} steps")
    folder = SHIPPED / model.id.rpartition("/")[2]
    shipped = {
        schedule.budget: schedule for schedule in map(Schedule.load, folder.glob("fitted-b*.json"))
    }
    if options.target_psnr is not None and shipped:
        chosen = smallest_budget(list(shipped.values()), options.target_psnr)
        print(f"render: {chosen.nfe} forwards, predicted{prediction(chosen).removeprefix(',')}")
        return chosen
    if options.budget not in shipped:
        wanted = "" if options.budget is None else f" of budget {options.budget}"
        raise ScheduleError(
            f"no schedule{wanted} is shipped for {model.id} (shipped: "
            f"{', '.join(map(str, sorted(shipped))) or 'none'}): run jobs.calibrate and "
            "jobs.solve, and give the file with --schedule"
        )
    return shipped[options.budget]


def _announce(prepared: Prepared, todo: Sequence[WorkItem]) -> None:
    done = len(prepared.items) - len(todo)
    schedule = prepared.schedule
    forwards = sum(
        schedule.nfe if schedule else item.arguments["num_inference_steps"] for item in todo
    )
    print(f"render: {len(todo)} videos to do ({forwards} forwards), {done} already done")
    repeated = prepared.rows - len(prepared.items)
    if repeated:
        print(f"{repeated} rows repeat another row and are not rendered twice")
    if prepared.dry_run:
        seconds = _known_seconds(prepared, todo) if done else None
        if seconds is None:
            print("time: unknown until a first video of this job is rendered")
        else:
            total = duration(seconds * len(todo))
            print(f"time: {total} of gang time at the last known rate of {seconds:.1f} s a video")


def _known_seconds(prepared: Prepared, todo: Sequence[WorkItem]) -> float | None:
    """Mean seconds of gang time a video took, over some receipts of this job."""
    left = {item.id for item in todo}
    seconds = []
    for item in [item for item in prepared.items if item.id not in left][-RATE_SAMPLE:]:
        try:
            row = manifest.read_receipt(prepared.store, item)
        except MissingKey:
            continue
        if row["status"] == manifest.OK:
            seconds.append(row["render_s"] + row["encode_s"] + row["upload_s"])
    return sum(seconds) / len(seconds) if seconds else None


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.render",
        "Renders every prompt to an mp4, and lists them in a Parquet manifest. A job that was\n"
        "stopped is resumed by the same command; a finished one renders nothing again.",
        "python -m jobs.render --model tiny --prompts prompts.txt --budget 10 --output out",
    )
    _cli.add_output(result, "where videos and manifest go")
    _cli.add_prompts(result)
    which = result.add_mutually_exclusive_group()
    which.add_argument(
        "--schedule", metavar="FILE", help="which steps to compute (default: all of them)"
    )
    which.add_argument(
        "--budget", type=int, metavar="B", help="use the schedule shipped for B forwards a video"
    )
    which.add_argument(
        "--target-psnr",
        type=_cli.finite,
        metavar="DB",
        help="use the shipped schedule of the fewest forwards that is predicted to come this close "
        "to the full run, as a mean over videos",
    )
    _cli.add_model(result)
    _cli.add_fleet(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
